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
sample_crop_boxes = jax.jit(cropping.sample_crop_boxes, static_argnames='crop')
random_crop = jax.jit(cropping.random_crop, static_argnames=('crop', 'size'))


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


def test_images_of_several_sizes_have_each_its_own_boxes():
    """The same boxes as among images of one size."""
    sizes = np.array([[32, 32], [375, 500], [64, 200]] * 50, np.int32)
    found = sample_crop_boxes(keys_of(150), sizes[:, 0], sizes[:, 1], crop=RandomCrop())
    for number, (height, width) in enumerate(sizes[:3].tolist()):
        expected = sample_crop_boxes(keys_of(150), height, width, crop=RandomCrop())
        np.testing.assert_array_equal(found[number::3], expected[number::3])


def on_canvas(image, side):
    return np.pad(image, [(0, side - image.shape[0]), (0, side - image.shape[1]), (0, 0)], constant_values=255)


def test_crops_of_a_canvas_are_those_of_the_image(photographs):
    """Also two of each image, which are the same as each alone."""
    (height, width), side = photographs.shape[1:3], 304
    canvases = np.stack([on_canvas(image, side) for image in photographs])
    sizes = np.array([[height, width, height, width]] * 2, np.float32)
    keys = keys_of(4)
    found = random_crop(canvases, sizes, keys, crop=RandomCrop(), size=32)
    alone = random_crop(np.repeat(photographs, 2, axis=0), None, keys, crop=RandomCrop(), size=32)
    close(found, alone, 1e-6)
    close(random_crop(photographs, None, keys, crop=RandomCrop(), size=32), alone, 1e-6)


def test_crops_of_a_smaller_copy_show_the_same(photographs):
    """Half of the pixels along each side: smooth pictures differ by less than one in fifty of the range."""
    smooth = np.asarray(jax.image.resize(photographs[:, :200, :].astype(np.float32), (2, 20, 30, 3), 'linear'))
    smooth = np.asarray(jax.image.resize(smooth, (2, 200, 300, 3), 'cubic')).clip(0, 255).astype(np.uint8)
    half = smooth.reshape(2, 100, 2, 150, 2, 3).mean((2, 4)).astype(np.uint8)
    sizes = np.array([[100, 150, 200, 300]] * 2, np.float32)
    canvases = np.stack([on_canvas(image, 160) for image in half])
    keys = keys_of(40)
    found = random_crop(canvases, sizes, keys, crop=RandomCrop(), size=32)
    expected = random_crop(smooth, None, keys, crop=RandomCrop(), size=32)
    distance = np.abs(found - expected)
    assert distance.mean() < 0.02
    # Moved by a pixel of the copy, they would be less alike.
    moved = random_crop(np.roll(canvases, 1, axis=2), sizes, keys, crop=RandomCrop(), size=32)
    assert distance.mean() < 0.3 * np.abs(moved - expected).mean()


@pytest.mark.parametrize(
    'in_file, on_canvas', [((534, 534), (468, 468)), ((1025, 1000), (384.375, 375)), ((5, 7), (3, 2))]
)
def test_what_lies_around_an_image_on_its_canvas_has_no_influence(in_file, on_canvas):
    """For boxes of the whole image, and scales that floats round."""
    whole = RandomCrop(area=(0.99, 1.0), aspect=(0.9, 1.1), attempts=1)
    sizes, keys = np.float32([[*on_canvas, *in_file]] * 40), keys_of(40)
    image = np.random.default_rng(0).integers(0, 256, (*np.ceil(on_canvas).astype(int), 3), dtype=np.uint8)
    padding = [(0, 480 - image.shape[0]), (0, 480 - image.shape[1]), (0, 0)]
    black, white = (np.pad(image, padding, constant_values=value)[np.newaxis].repeat(40, 0) for value in (0, 255))
    found = [random_crop(canvases, sizes, keys, crop=whole, size=16) for canvases in (black, white)]
    np.testing.assert_array_equal(*found)


def test_the_products_are_those_of_tensor_cores():
    jaxpr = str(
        jax.make_jaxpr(lambda images: cropping.crop_and_resize(images, np.zeros((1, 4), np.int32), 8))(
            np.zeros((1, 16, 16, 3), np.uint8)
        )
    )
    assert jaxpr.count('dot_general') == jaxpr.count('Precision.HIGH, Precision.HIGH') == 2


@pytest.mark.parametrize('offset, extent', [(0.25, 1.5), (2.5, 0.4), (3.9, 0.2), (0.0, 4.0)])
def test_a_window_between_pixels_has_all_that_it_touches(offset, extent):
    """And no other pixel, however small it is."""
    weights = np.asarray(cropping._resize_weights(np.float32([offset]), np.float32([extent]), 5, 3, 'bicubic'))[0]
    touched = (np.arange(5) + 1 > offset) & (np.arange(5) < offset + extent)
    assert not weights[:, ~touched].any()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


def tensor_float(values):
    """Rounds float32 to the ten bits of a mantissa that GPUs multiply, as float64."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = bits + 0xFFF + (bits >> 13 & 1) & ~np.uint64(0x1FFF)
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def test_products_of_tensor_cores_are_exact_to_half_a_byte(photographs):
    """The crops' precision allows them. Emulated for two photographs and for noise of black and white."""
    noise = 255 * np.random.default_rng(0).integers(0, 2, photographs.shape[1:], dtype=np.uint8)
    pictures = np.concatenate([photographs, noise[np.newaxis]]) / 255.0
    boxes = np.array([[0, 0, 224, 300], [10, 20, 200, 150], [5, 5, 90, 120]], np.int32)
    rows = np.asarray(cropping._resize_weights(boxes[:, 0], boxes[:, 2], 224, 96, 'bicubic'))
    columns = np.asarray(cropping._resize_weights(boxes[:, 1], boxes[:, 3], 300, 96, 'bicubic'))
    expected = np.einsum('vxw,vyh,bhwc->bvyxc', columns, rows, pictures, optimize=True)
    halfway = np.einsum('vyh,bhwc->bvywc', tensor_float(rows), tensor_float(pictures), optimize=True)
    found = np.einsum('vxw,bvywc->bvyxc', tensor_float(columns), tensor_float(halfway), optimize=True)
    assert 1e-4 < np.abs(found - expected).max() < 0.5 / 255


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
