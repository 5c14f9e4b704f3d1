"""The view for evaluation in NumPy: the host's and the reference's central crop."""

import numpy as np
import pytest

from simclr_jax.augment.center import center_crop, center_crop_box

SHAPES = [(375, 500), (40, 33), (8, 8), (1, 1), (3, 700)]
# Sums of four products of float32 in another order.
ROUNDING = 1e-6


@pytest.mark.parametrize('shape', SHAPES)
def test_it_is_the_hosts(shape):
    tf = pytest.importorskip('tensorflow', reason='the host augmentation, to compare with, needs TensorFlow')
    from simclr_jax.augment import host

    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for size in (8, 32, 33, 224):
        for kept in (0.875, 1.0):
            expected = host.center_crop(tf.constant(image), size, kept).numpy()
            found = center_crop(image, size, kept)
            assert (found.dtype, found.shape) == (np.float32, (size, size, 3))
            np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize('size', [16, 48])
def test_images_of_one_size_are_cropped_together(size):
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 60, 3), dtype=np.uint8)
    expected = np.stack([center_crop(image, size) for image in images])
    np.testing.assert_array_equal(center_crop(images, size), expected)


def test_the_crop_keeps_a_share_of_the_shorter_side():
    assert center_crop_box(375, 500) == (24, 86, 328, 328)
    assert center_crop_box(500, 375, 1.0) == (63, 0, 375, 375)
    # Half a pixel rounds to the even number: 0.875 * 12 = 10.5.
    assert center_crop_box(12, 12) == (1, 1, 10, 10)
    assert center_crop_box(1, 9, 0.1) == (0, 4, 1, 1)


def test_small_views_are_not_cropped():
    image = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3).astype(np.uint8)
    np.testing.assert_array_equal(center_crop(image, 32), image / np.float32(255))
