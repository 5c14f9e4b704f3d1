"""Times cross-validated support vector machines against scikit-learn's LinearSVC on a problem of VOC07's size.

python benchmarks/svm.py --width 2048 --peer-classes 2 --repeats 3
python benchmarks/svm.py --width 9216 --peer-classes 2 --repeats 3

The problem is that of `simclr_jax.probes.svm.fit_cross_validated`. There are 5,011 training and 4,952 test examples.
Up to 20 classes have VOC07's numbers of positives, and one label in fifty is ignored. A positive example weighs 2, a
negative one 1. For each class and each of 19 costs, three folds give the average precision. The machine of the best
cost is then fitted to all examples.

The features are made up: a rectified linear map of latent directions whose amplitudes fall as the -0.75th power of
their number. A width of 2,048 is that of a ResNet-50's representation, 9,216 that of its pooled feature maps.

Each measurement is its own process and reads the same arrays from files. A repeat runs all contestants in turn, every
second repeat in the reverse order. LinearSVC fits its machines in as many threads as there are cores. `linear_svc`
solves the primal problem, `linear_svc_dual` the dual one. LinearSVC fits each class by itself, so that its seconds per
class do not depend on the number of classes. With `--peer-classes` it fits only the first classes.

Prints one JSON line per contestant with medians over the repeats:

* `seconds_per_class_over_ours`: its seconds per class / our seconds per class in the same repeat. Above 1 ours is
  faster.
* `excess`: (objective - minimum) / minimum of the final machines, the largest over the first classes.
* `precision_difference`: the largest difference from our average precision on held-out examples, over all costs and
  the first classes.
* `validation_map`, `test_map`: mean average precision over the first classes, at the best cost of each.
* `unfinished`: number of LinearSVC's fits that ended at its limit of iterations, or of our warnings.
"""

import argparse
import concurrent.futures
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np

from simclr_jax.metrics.classification import average_precision, mean_average_precision

CONTESTANTS = ('simclr_jax', 'linear_svc', 'linear_svc_dual')
TRAINING, TEST = 5011, 4952
# Images of VOC07's training and validation sets with each class, in its alphabetical order: aeroplane to TV monitor.
POSITIVES = (238, 243, 330, 181, 244, 186, 713, 337, 445, 141, 200, 421, 287, 245, 2008, 245, 96, 229, 261, 256)
IGNORED = 0.02
LATENT = 2048
# LinearSVC's default, which the published protocol uses, and most iterations of one fit.
TOLERANCE, MAX_ITERATIONS = 1e-4, 2000


def main():
    """Measures all contestants, or with --contestant one of them on arrays in files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--width', type=int, default=2048, help='features per example')
    parser.add_argument('--classes', type=int, default=20, help='number of classes, the first ones of 20')
    parser.add_argument('--peer-classes', type=int, help='classes that LinearSVC fits, all by default')
    parser.add_argument('--unit-length', action='store_true', help='scale every example to length 1')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--peers', nargs='*', choices=CONTESTANTS[1:], default=CONTESTANTS[1:])
    parser.add_argument('--tolerance', type=float, default=TOLERANCE, help='tolerance of LinearSVC')
    parser.add_argument('--contestant', choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument('--folder', type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.peer_classes = options.peer_classes or options.classes
    if options.contestant:
        print(json.dumps(measure(options)))
    else:
        compare(options)


def compare(options):
    """Runs every contestant in each repeat and prints its medians."""
    names = ('simclr_jax', *options.peers)
    runs = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        write_problem(pathlib.Path(folder), options)
        for repeat in range(options.repeats):
            for name in names if repeat % 2 == 0 else reversed(names):
                runs[name].append(run(name, folder, options))
    ours = runs['simclr_jax']
    for name, found in runs.items():
        classes = options.classes if name == 'simclr_jax' else options.peer_classes
        shares = [
            run['seconds'] / classes * options.classes / own['seconds'] for run, own in zip(found, ours, strict=True)
        ]
        difference = np.subtract(found[0]['precision'], ours[0]['precision'])
        figures = {
            'contestant': name,
            'width': options.width,
            'classes': classes,
            'unit_length': options.unit_length,
            'seconds': round(float(np.median([run['seconds'] for run in found])), 1),
            'seconds_per_class': round(float(np.median([run['seconds'] for run in found])) / classes, 2),
            'seconds_per_class_over_ours': round(float(np.median(shares)), 2),
            'all_over_ours': [round(share, 2) for share in shares],
            'precision_difference': float(f'{np.max(np.abs(difference)):.1e}'),
            **{key: found[0][key] for key in ('excess', 'unfinished', 'validation_map', 'test_map', 'costs')},
        }
        print(json.dumps(figures), flush=True)


def write_problem(folder, options):
    """Writes features and targets to train on and to test on, one array per file."""
    generator = np.random.default_rng(0)
    amplitudes = np.arange(1, LATENT + 1, dtype=np.float32) ** -0.75
    latent = generator.standard_normal((TRAINING + TEST, LATENT), np.float32) * amplitudes
    features = latent @ generator.standard_normal((LATENT, options.width), np.float32)
    features = np.maximum(features / features.std() + 0.1, 0)
    if options.unit_length:
        features /= np.linalg.norm(features, axis=1, keepdims=True)
    # A class is a direction among the larger ones, with noise that no feature explains.
    directions = generator.standard_normal((100, len(POSITIVES)))
    scores = latent[:, :100] / amplitudes[:100] ** 0.5 @ directions
    scores += 0.4 * scores.std() * generator.standard_normal(scores.shape)
    thresholds = [np.quantile(scores[:, k], 1 - POSITIVES[k] / TRAINING) for k in range(len(POSITIVES))]
    targets = (scores > thresholds).astype(int)
    targets[generator.random(targets.shape) < IGNORED] = -1
    targets = targets[:, : options.classes]
    for name, part in (('training', slice(TRAINING)), ('test', slice(TRAINING, None))):
        np.save(folder / f'{name}_features.npy', features[part])
        np.save(folder / f'{name}_targets.npy', targets[part])


def run(name, folder, options):
    """Makes one measurement in its own process."""
    command = [sys.executable, __file__, '--contestant', name, '--folder', folder]
    command += ['--peer-classes', str(options.peer_classes), '--tolerance', str(options.tolerance)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f'{name}: {found["seconds"]:.1f} s', file=sys.stderr, flush=True)
    return found


def measure(options):
    """Measures seconds from arrays on the host to the final machines, compilation included, and their quality."""
    folder, first = options.folder, slice(options.peer_classes)
    features, targets = np.load(folder / 'training_features.npy'), np.load(folder / 'training_targets.npy')
    if options.contestant != 'simclr_jax':
        targets = targets[:, first]
    fit = {
        'simclr_jax': fit_simclr_jax,
        'linear_svc': functools.partial(fit_linear_svc, dual=False, tolerance=options.tolerance),
        'linear_svc_dual': functools.partial(fit_linear_svc, dual=True, tolerance=options.tolerance),
    }[options.contestant]
    start = time.perf_counter()
    kernel, bias, costs, precision, unfinished = fit(features, targets)
    seconds = time.perf_counter() - start
    kernel, bias, costs, precision = kernel[:, first], bias[first], costs[first], precision[:, first]
    targets = targets[:, first]
    test_features, test_targets = np.load(folder / 'test_features.npy'), np.load(folder / 'test_targets.npy')
    return {
        'seconds': seconds,
        'excess': float(f'{excess(kernel, bias, costs, features, targets):.1e}'),
        'unfinished': unfinished,
        'validation_map': round(float(precision.max(axis=0).mean()), 4),
        'test_map': round(float(mean_average_precision(test_features @ kernel + bias, test_targets[:, first])), 4),
        'costs': costs.tolist(),
        'precision': precision.tolist(),
    }


def fit_simclr_jax(features, targets):
    """This package: all classes at once by L-BFGS along the principal axes, each cost from the one before."""
    from simclr_jax.probes import svm

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always', RuntimeWarning)
        machines = svm.fit_cross_validated(features, targets)
    kernel, bias = (np.asarray(part) for part in machines.weights)
    return kernel, bias, machines.costs, machines.validation_precision, len(caught)


def fit_linear_svc(features, targets, *, dual, tolerance):
    """scikit-learn: each class, fold and cost by itself, several of them in threads."""
    from simclr_jax.probes import svm

    warnings.simplefilter('ignore')
    folds = svm.stratified_folds(targets, seed=0)
    classes = range(targets.shape[1])

    def path(job):
        fold, k = job
        fitted, held = (folds[:, k] >= 0) & (folds[:, k] != fold), folds[:, k] == fold
        rows, labels, found, missed = features[fitted], targets[fitted, k], [], 0
        for cost in svm.COSTS:
            kernel, bias, finished = linear_svc(rows, labels, cost, dual, tolerance)
            found.append(average_precision(features[held] @ kernel + bias, targets[held, k]))
            missed += not finished
        return found, missed

    def refit(job):
        k, cost = job
        known = targets[:, k] >= 0
        return linear_svc(features[known], targets[known, k], cost, dual, tolerance)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        jobs = [(fold, k) for k in classes for fold in range(svm.FOLDS)]
        paths = list(threads.map(path, jobs))
        precision = np.array([found for found, _ in paths]).reshape(len(classes), svm.FOLDS, -1).mean(axis=1).T
        costs = np.array(svm.COSTS)[precision.argmax(axis=0)]
        kernels, biases, finished = zip(*threads.map(refit, zip(classes, costs, strict=True)), strict=True)
    unfinished = sum(missed for _, missed in paths) + finished.count(False)
    return np.stack(kernels, axis=1), np.array(biases), costs, precision, unfinished


def linear_svc(features, labels, cost, dual, tolerance, max_iterations=MAX_ITERATIONS):
    """Kernel [F] and bias of one machine, and whether it met its tolerance."""
    from sklearn.svm import LinearSVC

    model = LinearSVC(
        C=cost,
        dual=dual,
        class_weight={1: 2, -1: 1},
        tol=tolerance,
        max_iter=max_iterations,
        random_state=0,
    )
    model.fit(features, np.where(labels == 1, 1, -1))
    return model.coef_[0], model.intercept_[0], model.n_iter_ < max_iterations


def excess(kernel, bias, costs, features, targets):
    """Largest (objective - minimum) / minimum over the classes, the minimum by Newton's method to ten digits."""

    def objective(weights, offset, rows, signs, cost):
        margins = np.maximum(1 - signs * (rows.astype(np.float64) @ weights.astype(np.float64) + offset), 0)
        return (weights @ weights + offset**2) / 2 + cost * np.sum(np.where(signs > 0, 2, 1) * margins**2)

    found = []
    for k, cost in enumerate(costs):
        known = targets[:, k] >= 0
        rows, signs = features[known], np.where(targets[known, k] == 1, 1, -1)
        weights, offset, _ = linear_svc(rows, signs, cost, False, 1e-10, 10000)
        reached = objective(kernel[:, k].astype(np.float64), float(bias[k]), rows, signs, cost)
        found.append(reached / objective(weights, offset, rows, signs, cost) - 1)
    return max(found)


if __name__ == '__main__':
    main()
