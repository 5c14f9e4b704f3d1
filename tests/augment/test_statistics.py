"""The host's augmentation draws from the reference's distributions: statistics of thousands of views."""

import numpy as np
import pytest

tf = pytest.importorskip('tensorflow', reason='the host augmentation needs TensorFlow')

from simclr_jax.augment import host, operations, policy  # noqa: E402
from support.statistics import CASES, quantities, reference, too_far  # noqa: E402

# Statistics of the random pipelines are compared within 4 standard errors of the two samples together: the
# thousand comparisons expect a chance failure in one of ten sets of seeds at most, and the seeds are fixed.
DRAWS = 4000


def draw(shared, views, strength, brightness_mode, image_bytes, is_resized=False):
    """DRAWS outputs of each view [V, DRAWS, 32, 32, 3] and the image that they are made from, float64."""
    image = tf.constant(np.frombuffer(image_bytes, np.uint8).reshape(64, 64, 3))
    image = host.center_crop(image, 32) if is_resized else image
    parameters = {'jitter': {'strength': strength, 'brightness_mode': brightness_mode}}
    described = policy.make_policy(32, shared=shared, views=views, parameters=parameters)
    dataset = tf.data.Dataset.range(DRAWS).map(
        lambda index: host.augment(image, tf.stack([index, 17]), described), num_parallel_calls=2
    )
    drawn = np.concatenate(list(dataset.batch(500).as_numpy_iterator())).astype(np.float64)
    return drawn.swapaxes(0, 1), image.numpy().astype(np.float64)


@pytest.fixture(scope='module')
def statistics(oracle):
    return oracle('augment_stats').info


@pytest.fixture(scope='module')
def pixels(oracle):
    return oracle('augment_stats_image')['image'].tobytes()


@pytest.mark.parametrize('strength, implementation', CASES)
def test_whole_pipeline_has_the_references_statistics(statistics, pixels, strength, implementation):
    """Crop, flip, jitter and drop; then the same draws blurred."""
    name, mode = implementation
    views, image = draw('crop flip jitter drop', ('', 'blur'), strength, mode, pixels)
    expected = reference(statistics, strength, name)
    assert too_far(quantities(views[0], image), expected['no_blur'], statistics['draws']) == {}
    assert too_far(quantities(views[1], image), expected['with_blur'], statistics['draws']) == {}


@pytest.mark.parametrize('strength, implementation', CASES)
def test_color_distortion_has_the_references_statistics(statistics, pixels, strength, implementation):
    name, mode = implementation
    views, image = draw('', ('jitter drop',), strength, mode, pixels, is_resized=True)
    expected = reference(statistics, strength, name)['color_only']
    assert too_far(quantities(views[0], image), expected, statistics['draws']) == {}


def test_crop_and_flip_have_the_references_statistics(statistics, pixels):
    views, image = draw('', (policy.SUPERVISED_VIEW,), 1.0, 'multiply', pixels)
    assert too_far(quantities(views[0], image), statistics['crop_flip_only'], statistics['draws']) == {}


def crop_quantities(boxes, height, width):
    y, x, h, w = boxes.astype(np.float64).T
    return {
        'area_fraction': h * w / (height * width),
        'aspect_ratio_w_over_h': w / h,
        'log_aspect_over_target': np.log(w / h),
        'height': h,
        'width': w,
        'relative_offset_y': y[h < height] / (height - h[h < height]),
        'relative_offset_x': x[w < width] / (width - w[w < width]),
        'whole_image': (h == height) & (w == width),
    }


@pytest.mark.parametrize('number', range(4))
def test_crop_boxes_have_the_references_statistics(statistics, number):
    expected = statistics['crop_boxes'][number]
    height, width = expected['image']
    dataset = tf.data.Dataset.range(10_000).map(
        lambda index: host.sample_crop_box(
            tf.constant([height, width, 3]), tf.stack([index, 5]), operations.RandomCrop()
        )
    )
    boxes = np.concatenate(list(dataset.batch(1000).as_numpy_iterator()))
    actual = crop_quantities(boxes, height, width)
    assert too_far(actual, {name: expected[name] for name in actual}, expected['draws']) == {}
    assert actual['area_fraction'].min() >= 0.1
    correlation = np.corrcoef(actual['area_fraction'], actual['aspect_ratio_w_over_h'])[0, 1]
    assert abs(correlation - expected['corr_area_aspect']) < 4 * np.sqrt(1 / 10_000 + 1 / expected['draws'])
    histogram = expected['area_histogram']
    fractions = np.histogram(actual['area_fraction'], histogram['edges'])[0] / len(boxes)
    error = np.sqrt(np.multiply(histogram['fraction'], np.subtract(1, histogram['fraction'])) * 1.25e-4)
    assert np.all(np.abs(fractions - histogram['fraction']) <= 4 * error + 1e-12)
