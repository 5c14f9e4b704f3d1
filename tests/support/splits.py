"""Folders of images, and what every split promises."""

import numpy as np
from PIL import Image

from simclr_jax.data.spec import Decoded


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
