"""The host's augmentation draws from the reference's distributions: statistics of thousands of views."""

import itertools

import numpy as np
import pytest

tf = pytest.importorskip('tensorflow', reason='the host augmentation needs TensorFlow')

from simclr_jax.augment import host, policy  # noqa: E402

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


def quantities(views, image):
    channel_means = views.mean((1, 2))
    rows, columns = views.mean((2, 3)), views.mean((1, 3))
    result = {
        'mean_r': channel_means[:, 0],
        'mean_g': channel_means[:, 1],
        'mean_b': channel_means[:, 2],
        'std': views.std((1, 2, 3)),
        'left_minus_right': columns[:, :16].mean(1) - columns[:, 16:].mean(1),
        'top_minus_bottom': rows[:, :16].mean(1) - rows[:, 16:].mean(1),
        'mean_abs_dx': np.abs(np.diff(views, axis=2)).mean((1, 2, 3)),
        'is_gray': np.ptp(views, axis=-1).max((1, 2)) <= 1e-5,
        'is_black': (views <= 0.0).all((1, 2, 3)),
        'fraction_zero': (views <= 0.0).mean((1, 2, 3)),
        'fraction_one': (views >= 1.0).mean((1, 2, 3)),
        'std_of_channel_means': channel_means.std(1),
    }
    if image.shape == views.shape[1:]:
        result['unchanged'] = (views == image).all((1, 2, 3))
    return result


def deviations(values, expected, expected_draws):
    """Deviations of mean, standard deviation and quantiles, in standard errors of both samples together."""
    share = 1.0 / len(values) + 1.0 / expected_draws
    found = {}
    if 'std' not in expected:
        probability = (values.sum() + expected['mean'] * expected_draws) / (len(values) + expected_draws)
        error = np.sqrt(probability * (1 - probability) * share)
        return {'mean': abs(values.mean() - expected['mean']) / max(error, 1e-9)}
    # The reference's own standard errors, scaled from its number of draws to both.
    scale = np.sqrt(expected_draws * share)
    for name, value in (('mean', values.mean()), ('std', values.std(ddof=1))):
        found[name] = abs(value - expected[name]) / max(scale * expected[f'{name}_se'], 1e-9)
    return found | quantile_deviations(values, expected['quantiles'], share)


def quantile_deviations(values, quantiles, share, rounding=1e-5):
    """How far from p the share of values up to the reference's p-quantile is; ties count on either side."""
    found = {}
    for key, quantile in quantiles.items():
        p = float(key)
        below, up_to = (np.mean(values < quantile + sign * rounding) for sign in (-1, 1))
        found[f'quantile {key}'] = max(below - p, p - up_to, 0.0) / np.sqrt(p * (1 - p) * share)
    return found


def too_far(actual, expected, expected_draws, limit=4.0):
    return {
        f'{quantity}: {name}': round(float(value), 2)
        for quantity in expected
        for name, value in deviations(actual[quantity], expected[quantity], expected_draws).items()
        if not value < limit
    }


CASES = list(itertools.product((1.0, 0.5), (('simclrv2', 'multiply'), ('simclrv1', 'add'))))


@pytest.fixture(scope='module')
def statistics(oracle):
    return oracle('augment_stats').info


@pytest.fixture(scope='module')
def pixels(oracle):
    return oracle('augment_stats_image')['image'].tobytes()


def reference(statistics, strength, implementation):
    entries = {(entry['strength'], entry['impl']): entry for entry in statistics['pipelines']}
    return entries[strength, implementation]


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
        lambda index: host.sample_crop_box(tf.constant([height, width, 3]), tf.stack([index, 5]), policy.RandomCrop())
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
