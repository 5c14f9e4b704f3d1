"""Measures images per second that become two 224-pixel views on the host, beside decoding alone and a peer.

python benchmarks/feed.py --data-dir TFDS_DATA_DIR --repeats 5 --peer 'PYTHON peer_pipeline.py'

The images are the prepared JPEGs of TFDS's imagenet2012. They are encoded in memory. `host` makes whole views.
`hybrid` makes crops as bytes, the devices' input. `decode` decodes each image once and discards it. The peer is a
command that gets --folder with the same JPEGs and --images. It prints a JSON line with images_per_second. Each repeat
runs all ways in turn. Prints one JSON line per way: the median, and the median ratio of its images per second / the
peer's and / those of decoding within a repeat.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import tempfile
import time

import numpy as np
import tensorflow as tf

from simclr_jax import sharding
from simclr_jax.config import base_config
from simclr_jax.data import pipeline
from simclr_jax.data.feed import open_feed
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
    options = parser.parse_args()
    config = base_config()
    config.data.path, config.batch_size = options.data_dir, BATCH
    examples = load_examples(config.data, 'train')
    ways = {
        'host': lambda: batches_of('host', config, examples),
        'hybrid': lambda: batches_of('hybrid', config, examples),
        'decode': lambda: decoded(examples),
    }
    rates = {name: [] for name in (*ways, *(['peer'] if options.peer else []))}
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(examples.content.files):
            (pathlib.Path(folder) / f'{number}.jpg').write_bytes(file)
        for _ in range(options.repeats):
            for name, start in ways.items():
                rates[name].append(images_per_second(start(), options.images))
            if options.peer:
                command = [*shlex.split(options.peer), '--folder', folder, '--images', str(options.images)]
                printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                rates['peer'].append(json.loads(printed.strip().splitlines()[-1])['images_per_second'])
    for name, found in rates.items():
        ratios = {
            f'over_{other}': round(float(np.median(np.divide(found, rates[other]))), 2)
            for other in ('decode', 'peer')
            if other in rates and other != name
        }
        print(json.dumps({'way': name, 'images_per_second': round(float(np.median(found)), 1), **ratios, 'all': found}))


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
