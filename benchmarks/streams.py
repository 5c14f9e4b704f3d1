"""Measures images per second that one of N processes reads from shards without decoding, by number of lanes.

python benchmarks/streams.py --data-dir TFDS_DATA_DIR --processes 8 --repeats 5

Writes the prepared JPEGs of TFDS's imagenet2012 into 64 shards of 100 records, which stay in the page cache. With one
lane, every process reads all records and keeps its own. Prints one JSON line per number of lanes, with the ratio of its
images per second / those of the first number of lanes.
"""

import argparse
import json
import pathlib
import tempfile
import time

import numpy as np
import tensorflow as tf

from simclr_jax.config import base_config
from simclr_jax.data import streams
from simclr_jax.data.sources import load_examples
from simclr_jax.data.spec import Share, Streamed

SHARDS, RECORDS = 64, 100
BATCH, READ, WARM_UP, MEASURED = 256, 32, 4, 60


def main():
    """Measures each number of lanes in each repeat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-dir', required=True, help="TFDS's directory with imagenet2012")
    parser.add_argument('--processes', type=int, default=8)
    parser.add_argument('--lanes', type=int, nargs='+', default=[1, 16])
    parser.add_argument('--repeats', type=int, default=5)
    options = parser.parse_args()
    config = base_config()
    config.data.path = options.data_dir
    files = load_examples(config.data, 'train').content.files
    with tempfile.TemporaryDirectory() as directory:
        paths = write_shards(pathlib.Path(directory), files)
        rates = {lanes: [] for lanes in options.lanes}
        for _ in range(options.repeats):
            for lanes, found in rates.items():
                found.append(images_per_second(paths, lanes, options.processes))
    for lanes, found in rates.items():
        ratio = float(np.median(np.divide(found, rates[options.lanes[0]])))
        median = round(float(np.median(found)))
        line = {'lanes': lanes, 'processes': options.processes, 'images_per_second_of_a_process': median}
        print(json.dumps(line | {f'over_{options.lanes[0]}': round(ratio, 2), 'all': [round(rate) for rate in found]}))


def write_shards(directory, files):
    """Writes the shards and returns their paths."""
    random = np.random.default_rng(0)
    paths = [str(directory / f'{number:03}') for number in range(SHARDS)]
    for path in paths:
        with tf.io.TFRecordWriter(path) as writer:
            for _ in range(RECORDS):
                writer.write(files[random.integers(len(files))])
    return paths


def images_per_second(paths, lanes, processes):
    """Measures images per second of the first process."""

    def read(shard):
        return tf.data.TFRecordDataset(tf.gather(paths, shard)).enumerate(shard * RECORDS)

    content = Streamed([RECORDS] * SHARDS, read, lambda record: (record, -1), lanes, shuffle_buffer=640)
    rows = streams.training_rows(
        content,
        batch_size=BATCH,
        seed=0,
        start_step=0,
        share=Share(0, processes),
        parallel_calls=tf.data.AUTOTUNE,
    )
    batches = iter(rows.batch(READ))
    for _ in range(WARM_UP):
        next(batches)
    start = time.perf_counter()
    for _ in range(MEASURED):
        next(batches)
    return READ * MEASURED / (time.perf_counter() - start)


if __name__ == '__main__':
    main()
