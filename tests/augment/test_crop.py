"""The devices' crops: the host's pixels, and boxes of TensorFlow's distribution."""

import jax
import numpy as np
import pytest
import scipy.stats

from simclr_jax.augment import crop as cropping
from simclr_jax.augment.operations import RandomCrop

tf = pytest.importorskip('tensorflow', reason='the host augmentation, to compare with, needs TensorFlow')

from simclr_jax.augment import host  # noqa: E402
from support.augmentation import by_host, close, keys_of  # noqa: E402

resize = jax.jit(cropping.resize, static_argnames=('height', 'width', 'method'))
crop_and_resize = jax.jit(cropping.crop_and_resize, static_argnames='size')
sample_crop_boxes = jax.jit(cropping.sample_crop_boxes, static_argnames=('height', 'width', 'crop'))


@pytest.mark.parametrize('size', [32, 96, 224])
def test_crop_and_resize_is_the_hosts(photographs, size):
    """Boxes in the middle, along each border, of one pixel, and the whole image; bytes and floats."""
    boxes = [
        [3, 7, 150, 201],
        [0, 0, 224, 300],
        [100, 0, 5, 3],
        [17, 33, 97, 131],
        [134, 225, 90, 75],
        [223, 299, 1, 1],
    ]
    boxes = np.array(boxes, np.int32)
    for images in (photographs, (photographs / 255.0).astype(np.float32)):
        repeated = np.tile(images, [3, 1, 1, 1])
        expected = by_host(lambda image, box: host.crop_and_resize(image, box, size), repeated, boxes)
        close(crop_and_resize(repeated, boxes, size=size), expected)


@pytest.mark.parametrize('method', ['bicubic', 'bilinear'])
@pytest.mark.parametrize('shape', [(30, 50), (224, 224), (448, 333)])
def test_resize_is_tensorflows(photographs, method, shape):
    expected = tf.image.resize(photographs, shape, method).numpy() / 255.0
    close(resize(photographs, *shape, method), expected)


def boxes_of_host(count, height, width, crop):
    dataset = tf.data.Dataset.range(count).map(
        lambda index: host.sample_crop_box(tf.constant([height, width, 3]), tf.stack([index, 5]), crop),
        num_parallel_calls=2,
    )
    return np.concatenate(list(dataset.batch(1000).as_numpy_iterator())).astype(np.float64)


@pytest.mark.parametrize(
    'height, width, crop',
    [
        (32, 32, RandomCrop()),
        (375, 500, RandomCrop()),
        (64, 200, RandomCrop(area=(0.2, 0.9), aspect=(0.5, 3.0), min_object_covered=0.0)),
    ],
)
def test_crop_boxes_have_the_hosts_distribution(height, width, crop):
    """Two-sample Kolmogorov-Smirnov, 20,000 boxes each; chance fails one of the fifteen in seventy sets of seeds."""
    expected = boxes_of_host(20_000, height, width, crop)
    found = np.asarray(sample_crop_boxes(keys_of(20_000), height=height, width=width, crop=crop), np.float64)
    assert np.all(found >= [0, 0, 1, 1])
    assert np.all(found[:, :2] + found[:, 2:] <= [height, width])
    for name in ('area', 'aspect', 'y', 'x', 'height'):
        samples = [box_quantity(name, boxes, height, width) for boxes in (found, expected)]
        assert scipy.stats.ks_2samp(*samples).pvalue > 1e-3, name


def box_quantity(name, boxes, height, width):
    y, x, h, w = boxes.T
    return {
        'area': h * w,
        'aspect': w / h,
        'y': y[h < height] / (height - h[h < height]),
        'x': x[w < width] / (width - w[w < width]),
        'height': h,
    }[name]


@pytest.mark.parametrize('attempts', [1, 3])
def test_attempts_that_fail_end_in_the_whole_image_as_often_as_on_the_host(attempts):
    crop = RandomCrop(area=(0.08, 0.2), attempts=attempts, min_object_covered=0.15)
    expected = boxes_of_host(5000, 50, 70, crop)[:, 2] == 50
    whole = sample_crop_boxes(keys_of(20_000), height=50, width=70, crop=crop)[:, 2] == 50
    probability = np.mean(np.concatenate([expected, whole]))
    assert 0.01 < probability < 0.9
    error = np.sqrt(probability * (1 - probability) * (1 / 5000 + 1 / 20_000))
    assert abs(expected.mean() - whole.mean()) < 4 * error
