"""Measures images per second that become two 224-pixel views on the host, beside decoding alone and a peer.

python benchmarks/feed.py --data-dir TFDS_DATA_DIR --repeats 5 --peer 'PYTHON peer_pipeline.py'
python benchmarks/feed.py --data-dir TFDS_DATA_DIR --memory 2000

The images are the prepared JPEGs of TFDS's imagenet2012. They are encoded in memory. `host` makes whole views, `crops`
only their crops.
`hybrid` makes crops as bytes, and `decoded` whole images on canvases, the devices' input. `packed` is `decoded` from
images that `simclr pack` made smaller, on the disk. `decode` decodes each image once and discards it. The peer is a
command that gets --folder with the original JPEGs and --images. It prints a JSON line with images_per_second. Each
repeat runs all ways in turn. Prints one JSON line per way: the median, and the median ratio of its images per second /
the peer's and / those of decoding within a repeat.

With --memory, each way makes that many batches. Prints the memory of the process, in MiB, after each tenth of them.
"""

import argparse
import json
import os
import pathlib
import shlex
import subprocess
import tempfile
import time

import numpy as np
import psutil
import tensorflow as tf
from etils import epath

from simclr_jax import sharding
from simclr_jax.config import base_config, with_values
from simclr_jax.data import pipeline
from simclr_jax.data.feed import open_feed
from simclr_jax.data.packing import Packing, pack
from simclr_jax.data.sources import load_examples

BATCH = 32
WARM_UP = 4


def main():
    """Measures every way in each repeat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-dir', required=True, help="TFDS's directory with imagenet2012")
    parser.add_argument('--images', type=int, default=512, help='images per measurement')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--peer', help='command of the peer')
    parser.add_argument('--memory', type=int, default=0, help='batches over which to look at the memory')
    options = parser.parse_args()
    config = base_config()
    config.data.path, config.batch_size = options.data_dir, BATCH
    examples = load_examples(config.data, 'train')
    with tempfile.TemporaryDirectory() as folder:
        originals, small = pathlib.Path(folder) / 'originals', pathlib.Path(folder) / 'packed'
        originals.mkdir()
        for number, file in enumerate(examples.content.files):
            (originals / f'{number}.jpg').write_bytes(file)
        pack(examples, epath.Path(small), 'train', Packing(side=256, quality=90, max_unreadable=0.0))
        ways = ways_of(config, examples, os.fspath(small))
        if options.memory:
            for name, start in ways.items():
                print(json.dumps({'way': name, 'MiB': memory_over(start(), options.memory)}), flush=True)
            return
        peer = f'{options.peer} --folder {originals} --images {options.images}' if options.peer else ''
        report(measured(ways, peer, options))


def ways_of(config, examples, packed):
    """Every way from stored images to batches, as functions that start it."""
    small = base_config()
    small.data.source, small.data.path, small.batch_size = 'packed', packed, BATCH
    return {
        'host': lambda: batches_of('host', config, examples),
        'crops': lambda: batches_of('host', with_values(config, {'augment.views': ('crop', 'crop')}), examples),
        'hybrid': lambda: batches_of('hybrid', config, examples),
        'decoded': lambda: batches_of('decoded', config, examples),
        'packed': lambda: batches_of('decoded', small, load_examples(small.data, 'train')),
        'decode': lambda: decoded(examples),
    }


def measured(ways, peer, options):
    """Images per second of every way and of the peer, one number per repeat."""
    rates = {name: [] for name in (*ways, *(['peer'] if peer else []))}
    for _ in range(options.repeats):
        for name, start in ways.items():
            rates[name].append(images_per_second(start(), options.images))
        if peer:
            printed = subprocess.run(shlex.split(peer), capture_output=True, text=True, check=True).stdout
            rates['peer'].append(json.loads(printed.strip().splitlines()[-1])['images_per_second'])
    return rates


def report(rates):
    """Prints medians and ratios."""
    for name, found in rates.items():
        ratios = {
            f'over_{other}': round(float(np.median(np.divide(found, rates[other]))), 2)
            for other in ('decode', 'peer')
            if other in rates and other != name
        }
        print(json.dumps({'way': name, 'images_per_second': round(float(np.median(found)), 1), **ratios, 'all': found}))


def memory_over(batches, count):
    """Memory of this process, in MiB, after each tenth of the batches."""
    found = []
    for number in range(1, count + 1):
        next(batches)
        if number % (count // 10) == 0:
            found.append(round(psutil.Process().memory_info().rss / 2**20))
    return found


def batches_of(feed, config, examples):
    """Makes endless batches of one of this package's feeds."""
    config.data.feed = feed
    return open_feed(config, examples, sharding.make_mesh()).batches(0)


def decoded(examples):
    """Makes endless batches of the images' shapes, which need each image decoded."""
    files = tf.constant(np.array(examples.content.files, object))
    dataset = tf.data.Dataset.range(10**9).map(
        lambda n: tf.shape(pipeline.decode(files[n % examples.size])), num_parallel_calls=tf.data.AUTOTUNE
    )
    return dataset.batch(BATCH).prefetch(2).as_numpy_iterator()


def images_per_second(batches, images):
    """Measures images per second, after some batches that fill the buffers."""
    for _ in range(WARM_UP):
        next(batches)
    start = time.perf_counter()
    for _ in range(images // BATCH):
        next(batches)
    return round(images / (time.perf_counter() - start), 1)


if __name__ == '__main__':
    main()
