"""Measures seconds and memory of the k nearest neighbours by cosine similarity, beside those of other programs.

python benchmarks/knn.py --bank 50000 --queries 10000 --dim 512 --k 200 --repeats 3 --peers-python PYTHON

Each measurement is its own process and reads the features from files. Each repeat runs all contestants in turn. Prints
one JSON line per contestant: medians over the repeats, and the median ratio of its seconds / our seconds within a
repeat. Above 1 ours is faster. Peak memory is the growth of the process above the features (Linux only). The sum of
the similarities shows whether all contestants found the same. The last line is about the fastest other contestant of
each repeat.

The OpenBLAS inside faiss-cpu uses slow kernels on processors that it does not know. OPENBLAS_CORETYPE (Haswell,
SkylakeX) in the environment names the kernels to use.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

CONTESTANTS = ('simclr_jax', 'numpy', 'sklearn', 'faiss')
# Queries per block in the contestant written in NumPy.
NUMPY_BLOCK = 512


def main():
    """Measures all contestants, or with --contestant one of them on features in a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--bank', type=int, default=50000, help='members of the bank')
    parser.add_argument('--queries', type=int, default=10000)
    parser.add_argument('--dim', type=int, default=512, help='width of the features')
    parser.add_argument('--k', type=int, default=200, help='neighbours')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--peers-python', default=sys.executable, help='a Python with faiss-cpu and scikit-learn')
    parser.add_argument('--contestant', choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument('--features', type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        print(json.dumps(measure(options.contestant, options.features, options.k)))
    else:
        compare(options)


def compare(options):
    """Runs every contestant in each repeat and prints its medians."""
    runs = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory() as folder:
        write_features(pathlib.Path(folder), options)
        for _ in range(options.repeats):
            for name in CONTESTANTS:
                runs[name].append(run(name, folder, options))
    ours = [run['seconds'] for run in runs['simclr_jax']]
    settings = {'bank': options.bank, 'queries': options.queries, 'dim': options.dim, 'k': options.k}
    for name, found in runs.items():
        if 'absent' in found[0]:
            print(json.dumps({'contestant': name, **found[0]}))
            continue
        ratios = [run['seconds'] / own for own, run in zip(ours, found, strict=True)]
        figures = {
            'contestant': name,
            **settings,
            'seconds': round(float(np.median([run['seconds'] for run in found])), 2),
            'first_call_seconds': round(float(np.median([run['first_call_seconds'] for run in found])), 2),
            'seconds_over_ours': round(float(np.median(ratios)), 2),
            'ratios': [round(ratio, 2) for ratio in ratios],
            'peak_growth_mib': round(float(np.median([run['peak_growth_mib'] for run in found]))),
            'similarity_sum': found[0]['similarity_sum'],
        }
        print(json.dumps(figures))
    others = [found for name, found in runs.items() if name != 'simclr_jax' and 'absent' not in found[0]]
    fastest = [min(run['seconds'] for run in repeat) for repeat in zip(*others, strict=True)]
    ratios = [other / own for own, other in zip(ours, fastest, strict=True)]
    print(json.dumps({**settings, 'fastest_seconds_over_ours': round(float(np.median(ratios)), 2)}))


def write_features(folder, options):
    """Writes non-negative features in a hundred clusters, like those of a pooled ReLU, one array per file."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((100, options.dim), np.float32)
    for name, size in (('bank', options.bank), ('queries', options.queries)):
        noise = generator.standard_normal((size, options.dim), np.float32)
        features = np.maximum(centres[generator.integers(0, 100, size)] + noise, 0)
        np.save(folder / f'{name}.npy', features)


def run(name, folder, options):
    """Makes one measurement in its own process."""
    python = sys.executable if name == 'simclr_jax' else options.peers_python
    command = [python, __file__, '--contestant', name, '--features', folder, '--k', str(options.k)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(name, folder, k):
    """Measures seconds of the first and of the second search, and the growth of this process during both."""
    try:
        search = globals()[f'search_{name}']()
    except ImportError as error:
        return {'absent': str(error)}
    bank, queries = np.load(folder / 'bank.npy'), np.load(folder / 'queries.npy')
    before = memory_kib('VmRSS')
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        similarity, _ = search(bank, queries, k)
        seconds.append(time.perf_counter() - start)
    return {
        'first_call_seconds': seconds[0],
        'seconds': seconds[1],
        'peak_growth_mib': (memory_kib('VmHWM') - before) / 1024,
        'similarity_sum': round(float(similarity.astype(np.float64).sum()), 1),
    }


def memory_kib(field):
    """Reads the memory of this process in KiB, its resident size (VmRSS) or the largest so far (VmHWM)."""
    lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def search_simclr_jax():
    """Makes the search of this package, on the device in blocks."""
    from simclr_jax.probes.knn import nearest_neighbours

    return lambda bank, queries, k: nearest_neighbours(bank, queries, k=k)


def search_numpy():
    """Makes a search by blocks of the product, argpartition, and a sort of the k that remain."""

    def search(bank, queries, k):
        bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        nearest, index = [], []
        for start in range(0, len(queries), NUMPY_BLOCK):
            similarity = queries[start : start + NUMPY_BLOCK] @ bank.T
            places = np.argpartition(similarity, -k, axis=1)[:, -k:]
            found = np.take_along_axis(similarity, places, axis=1)
            order = np.argsort(-found, axis=1)
            nearest.append(np.take_along_axis(found, order, axis=1))
            index.append(np.take_along_axis(places, order, axis=1))
        return np.concatenate(nearest), np.concatenate(index)

    return search


def search_sklearn():
    """Makes scikit-learn's search by brute force."""
    from sklearn.neighbors import NearestNeighbors

    def search(bank, queries, k):
        neighbours = NearestNeighbors(n_neighbors=k, algorithm='brute', metric='cosine').fit(bank)
        distance, index = neighbours.kneighbors(queries)
        return 1 - distance, index

    return search


def search_faiss():
    """Makes FAISS's search by exact inner products of normalised features."""
    import faiss

    def search(bank, queries, k):
        bank, queries = bank.copy(), queries.copy()
        faiss.normalize_L2(bank)
        faiss.normalize_L2(queries)
        index = faiss.IndexFlatIP(bank.shape[1])
        index.add(bank)
        return index.search(queries, k)

    return search


if __name__ == '__main__':
    main()
