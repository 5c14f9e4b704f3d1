"""Folders of images, and what every split promises."""

import numpy as np
from PIL import Image

from simclr_jax.data.spec import Decoded, Packed, Streamed


def assert_contract(examples):
    """What spec.Examples promises of a split in memory."""
    assert examples.labels.dtype == np.int32
    assert examples.labels.shape == (examples.size,)
    assert examples.labels.min() >= -1
    assert examples.labels.max() < max(examples.num_classes, 1)
    if isinstance(examples.content, Decoded):
        assert examples.content.images.dtype == np.uint8
        assert examples.content.images.shape[0] == examples.size
        assert examples.content.images.shape[3:] == (3,)


def save_images(root, names):
    """Writes an image file at each of the relative paths."""
    pixels = np.random.default_rng(0).integers(1, 256, size=(6, 4, 3), dtype=np.uint8)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def streamed(files, labels, shards=9, lanes=1):
    """The content of a split that is read in order, in shards of one size."""
    import tensorflow as tf

    size = len(files) // shards

    def read(shard):
        rows = tf.data.Dataset.range(len(files)).skip(shard * size).take(size)
        return rows.map(lambda index: (index, index))

    def parse(index):
        return tf.gather(files, index), tf.gather(labels, index)

    return Streamed([size] * shards, read, parse, lanes, shuffle_buffer=len(files))


def packed(path, files):
    """The content of a packed split: the files in two shards."""
    half, length = len(files) // 2, np.array([len(file) for file in files])
    shards = [str(path / f'shard-{number}') for number in range(2)]
    for shard, part in zip(shards, (files[:half], files[half:]), strict=True):
        with open(shard, 'wb') as opened:
            opened.write(b''.join(part))
    start = np.concatenate([np.cumsum(part) - part for part in (length[:half], length[half:])])
    number = (np.arange(len(files)) >= half).astype(np.int32)
    return Packed(shards, number, start, length, [f'original/{place}' for place in range(len(files))], digest='')
