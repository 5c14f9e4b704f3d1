"""Images a second that the host makes into two 224-pixel views, beside decoding alone and another program.

python benchmarks/feed.py --data-dir TFDS_DATA_DIR --repeats 5 --peer 'PYTHON peer_pipeline.py'

JPEGs of ImageNet (TFDS's imagenet2012, as far as it is prepared), held encoded in memory. `host` makes whole views,
`hybrid` what the devices want (crops as bytes), `decode` decodes each image once and throws it away. The peer is a
command that is given --folder with the same JPEGs and prints a JSON line with images_per_second. The repeats take
all in turn. Prints one JSON line each: medians, and the median of the ratios within a repeat.
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

from simclr_jax.config import base_config
from simclr_jax.data import pipeline
from simclr_jax.data.feed import train_batches
from simclr_jax.data.sources import load_examples
from simclr_jax.training.schedule import Schedule

BATCH = 32
WARM_UP = 4
# Of host and hybrid only the images of a step matter.
ONE_BY_ONE = Schedule(1, 1.0, 1, 1, 0, learning_rate=lambda step: 0.0)


def main():
    """Times every way in each repeat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-dir', required=True, help="TFDS's directory with imagenet2012")
    parser.add_argument('--images', type=int, default=512, help='of one measurement')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--peer', help='command of another program')
    options = parser.parse_args()
    config = base_config()
    config.data.path, config.batch_size = options.data_dir, BATCH
    examples = load_examples(config.data, 'train')
    ways = {
        'host': lambda: train_batches('host', config, examples, None, ONE_BY_ONE, 0),
        'hybrid': lambda: train_batches('hybrid', config, examples, None, ONE_BY_ONE, 0),
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


def decoded(examples):
    """Endless batches of nothing but the labels, after the images were decoded."""
    files = tf.constant(np.array(examples.content.files, object))
    dataset = tf.data.Dataset.range(10**9).map(
        lambda n: tf.shape(pipeline.decode(files[n % examples.size])), num_parallel_calls=tf.data.AUTOTUNE
    )
    return dataset.batch(BATCH).prefetch(2).as_numpy_iterator()


def images_per_second(batches, images):
    """Of so many images, after some to fill the buffers."""
    for _ in range(WARM_UP):
        next(batches)
    start = time.perf_counter()
    for _ in range(images // BATCH):
        next(batches)
    return round(images / (time.perf_counter() - start), 1)


if __name__ == '__main__':
    main()
