"""The devices' augmentation: the host's operations, the reference's distributions, each image on its own."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from simclr_jax.augment import device
from simclr_jax.augment.operations import OPERATIONS, ColorJitter
from simclr_jax.augment.policy import make_policy

tf = pytest.importorskip('tensorflow', reason='the host augmentation, to compare with, needs TensorFlow')

from simclr_jax.augment import host  # noqa: E402
from support.augmentation import by_host, close, keys_of  # noqa: E402
from support.statistics import CASES, quantities, reference, too_far  # noqa: E402

DRAWS = 4000

augment = jax.jit(device.augment, static_argnames='policy')
jitter = jax.jit(device.jitter, static_argnames='brightness_mode')
crop_and_resize = jax.jit(device.crop_and_resize, static_argnames='size')

ALWAYS = {name: {'p': 1.0} for name in OPERATIONS if name != 'crop'}


@pytest.fixture(scope='module', params=[32, 224])
def views(request, photographs):
    """Squares of both photographs; enlarged, they leave [0, 1] a little: float32 [2, S, S, 3]."""
    corner = np.tile(np.array([60, 90, 64, 48], np.int32), [2, 1])
    enlarged = np.asarray(crop_and_resize(photographs, corner, size=request.param))
    assert enlarged.min() < 0.0 or enlarged.max() > 1.0
    return enlarged


@pytest.fixture(scope='module')
def small(photographs):
    """Eight different images, uint8 [8, 40, 32, 3]."""
    return np.concatenate([photographs[:, 40 * row : 40 * row + 40, 100:132] for row in range(4)])


@pytest.fixture(scope='module')
def faint(small):
    """The same with half of the contrast, so that no bicubic crop leaves [0, 1]: a clip changes nothing."""
    return (small // 2 + 64).astype(np.uint8)


# Operation by operation, with the host's parameters.


@pytest.mark.parametrize('mode', ['multiply', 'add'])
def test_jitter_is_the_hosts_in_every_order(views, mode):
    orders = np.array(list(itertools.permutations(range(4))), np.int32)
    draw = np.random.default_rng(0).uniform
    brightness = draw(0.2, 1.8, 24) if mode == 'multiply' else draw(-0.8, 0.8, 24)
    values = brightness, draw(0.2, 1.8, 24), draw(0.0, 1.8, 24), draw(-0.5, 0.5, 24)
    values = tuple(value.astype(np.float32) for value in values)
    images = views[np.arange(24) % 2]
    expected = by_host(lambda image, *args: host.jitter(image, *map(tf.constant, args), mode), images, orders, *values)
    close(jitter(images, orders, *values, brightness_mode=mode), expected)


@pytest.mark.parametrize('source', ['small', 'overshoot'])
def test_jitter_is_the_references_in_every_order(oracle, source):
    fixed = oracle('augment')
    images, orders = fixed[source], fixed['jitter_orders'].astype(np.int32)
    values = [np.full(len(images), value, np.float32) for value in fixed['jitter_values']]
    found = np.stack([jitter(images, np.tile(order, [len(images), 1]), *values) for order in orders])
    close(fixed.pick(f'{source}/jitter', found), fixed[f'{source}/jitter'])


def test_jitter_turns_greys_and_primaries_as_the_host():
    """Ties among the channels, no chroma, black, and hues at the end of the circle."""
    levels = np.array(list(itertools.product((0.0, 0.25, 0.5, 1.0), repeat=3)), np.float32).reshape(1, 8, 8, 3)
    shifts = np.array([-0.5, -1 / 3, -1 / 6, 0.0, 1 / 6, 0.25, 0.5], np.float32)
    images, ones = np.tile(levels, [len(shifts), 1, 1, 1]), np.ones_like(shifts)
    order = np.tile(np.arange(4, dtype=np.int32), [len(shifts), 1])
    expected = by_host(tf.image.adjust_hue, images, shifts)
    close(jitter(images, order, ones, ones, ones, shifts), expected)
    factors = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 5.0, 100.0], np.float32)
    expected = by_host(tf.image.adjust_saturation, images, factors)
    close(jitter(images, order, ones, ones, factors, 0 * ones), expected)


def test_other_operations_are_the_hosts(views):
    size = views.shape[1]
    close(device.grayscale(views), by_host(host.grayscale, views))
    close(device.sobel(jnp.asarray(views)), by_host(host.sobel, views))
    for radius in (1, (size // 10) // 2):
        for sigma in (np.float32([0.1, 2.0]), np.float32([0.7, 1.3])):
            expected = by_host(lambda image, s, taps=radius: host.blur(image, s, taps), views, sigma)
            close(device.blur(jnp.asarray(views), jnp.asarray(sigma), radius), expected)
    for turns in itertools.product(range(4), repeat=2):
        rotated = device.rotate(jnp.asarray(views), jnp.array(turns))
        np.testing.assert_array_equal(rotated, [np.rot90(*pair) for pair in zip(views, turns, strict=True)])


def test_non_square_images_are_blurred_filtered_and_covered_as_on_the_host(photographs):
    images = (photographs / 255.0).astype(np.float32)
    sigma, center = np.float32([0.4, 1.9]), np.float32([[0.5, 0.5], [0.1, 0.97]])
    close(device.blur(jnp.asarray(images), sigma, 11), by_host(lambda image, s: host.blur(image, s, 11), images, sigma))
    close(device.sobel(jnp.asarray(images)), by_host(host.sobel, images))
    expected = by_host(lambda image, place: host.cutout(image, place, 0.5, 0.7), images, center)
    np.testing.assert_array_equal(device.cutout(images, center, 0.5, 0.7), expected)


# Distributions.


@pytest.fixture(scope='module')
def statistics(oracle):
    return oracle('augment_stats').info


@pytest.fixture(scope='module')
def image(oracle):
    return oracle('augment_stats_image')['image'].reshape(64, 64, 3)


def draw(image, policy):
    """DRAWS outputs of each view, float64 [V, DRAWS, S, S, 3]; `image` [...] or one for each draw [DRAWS, ...]."""
    batches = []
    for keys in keys_of(DRAWS, seed=17).reshape(-1, 500):
        images = np.broadcast_to(image, [500, *image.shape]) if image.ndim == 3 else image[500 * len(batches) :][:500]
        batches.append(np.asarray(augment(images, keys, policy)))
    return np.concatenate(batches).astype(np.float64).swapaxes(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize('strength, implementation', CASES)
def test_whole_pipeline_has_the_references_statistics(statistics, image, strength, implementation):
    """Crop, flip, jitter and drop, and the same with blur, as the host's test: 4 standard errors."""
    name, mode = implementation
    expected = reference(statistics, strength, name)
    parameters = {'jitter': {'strength': strength, 'brightness_mode': mode}}
    simclr = make_policy(32, shared='crop flip jitter drop', views=('', 'blur'), parameters=parameters)
    plain, blurred = draw(image, simclr)
    assert too_far(quantities(plain, image), expected['no_blur'], statistics['draws']) == {}
    assert too_far(quantities(blurred, image), expected['with_blur'], statistics['draws']) == {}


@pytest.mark.slow
def test_color_distortion_has_the_references_statistics(statistics, image):
    resized = host.center_crop(tf.constant(image), 32).numpy()
    (views,) = draw(resized, make_policy(32, views=('jitter drop',)))
    expected = reference(statistics, 1.0, 'simclrv2')['color_only']
    assert too_far(quantities(views, resized.astype(np.float64)), expected, statistics['draws']) == {}


def test_cropped_by_the_host_and_finished_by_the_devices_is_the_references(statistics, image):
    """In bytes between the two: their rounding, 1/510, is what the quantities must not see."""
    whole = make_policy(32, views=('crop flip jitter drop',))
    first, rest = whole.split()
    dataset = tf.data.Dataset.range(DRAWS).map(
        lambda index: host.augment(tf.constant(image), tf.stack([index, 17]), first), num_parallel_calls=2
    )
    cropped = np.concatenate(list(dataset.batch(500).as_numpy_iterator()))
    (views,) = draw(np.round(cropped * 255.0).astype(np.uint8), rest)
    expected = dict(reference(statistics, 1.0, 'simclrv2')['no_blur'])
    # A channel that the rounding moved to 0 or 1 counts there.
    for counted in ('fraction_zero', 'fraction_one'):
        del expected[counted]
    assert too_far(quantities(views, image), expected, statistics['draws']) == {}


@pytest.mark.parametrize('name', [name for name in OPERATIONS if name != 'crop'])
def test_an_operation_is_applied_as_often_as_asked_and_leaves_the_others_exactly(name, small):
    """2000 draws with p = 0.3, within 4 standard errors; a quarter of the rotations is by nothing."""
    images = (small[np.arange(2000) % 8, :32] / 255.0).astype(np.float32)
    parameters = {name: {'p': 0.3}}
    made = np.asarray(augment(images, keys_of(2000), make_policy(32, views=(name,), parameters=parameters)))[:, 0]
    share = np.mean((made != images).any(axis=(1, 2, 3)))
    expected = 0.3 * 0.75 if name == 'rotate' else 0.3
    assert abs(share - expected) < 4 * np.sqrt(0.3 * 0.7 / 2000)


def test_blur_draws_sigma_uniformly_for_each_image():
    """A blurred point shows its sigma: neighbour / centre = exp(-1 / (2 sigma^2)). The test has 1 % size."""
    point = np.zeros((1000, 32, 32, 3), np.float32)
    point[:, 16, 16] = 1.0
    blurred = augment(point, keys_of(1000), make_policy(32, views=('blur',)))
    neighbour, center = np.asarray(blurred[:, 0, 16, 15:17, 0], np.float64).T
    sigma = np.sqrt(-0.5 / np.log((neighbour / center)[neighbour > 0.0]))
    assert scipy.stats.kstest(sigma, scipy.stats.uniform(0.1, 1.9).cdf).pvalue > 0.01


@pytest.mark.slow
def test_noise_is_normal_and_its_strength_is_drawn_for_each_image():
    noise = make_policy(32, views=('noise',), parameters={'noise': {'std': (0.02, 0.1)}})
    values = np.asarray(augment(np.full((500, 32, 32, 3), 0.5, np.float32), keys_of(500), noise))[:, 0] - 0.5
    deviation = values.std(axis=(1, 2, 3))
    assert scipy.stats.kstest(deviation, scipy.stats.uniform(0.02, 0.08).cdf).pvalue > 0.01
    normalized = (values / deviation[:, None, None, None])[:20, ::3, ::3]
    assert scipy.stats.kstest(normalized.ravel(), 'norm').pvalue > 0.01
    assert abs(np.corrcoef(values[0].ravel(), values[1].ravel())[0, 1]) < 4 / np.sqrt(values[0].size)


def test_jitter_draws_every_order_and_the_whole_ranges():
    draws = jax.random.uniform(jax.random.key(0), (5, 24_000), jnp.float32)
    orders, *values = device._jitter_parameters(ColorJitter(strength=0.5), draws)
    assert scipy.stats.chisquare(np.unique(orders, axis=0, return_counts=True)[1]).pvalue > 0.01
    assert len(np.unique(orders, axis=0)) == 24
    ranges = [(0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)]
    for value, (low, high) in zip(values, ranges, strict=True):
        assert scipy.stats.kstest(value, scipy.stats.uniform(low, high - low).cdf).pvalue > 0.01


# What a policy promises.


def test_a_key_decides_the_pixels(small):
    simclr = make_policy(32)
    first, again = (np.asarray(augment(small, keys_of(8), simclr)) for _ in range(2))
    other = np.asarray(augment(small, keys_of(8, seed=1), simclr))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (8, 2, 32, 32, 3)
    assert first.dtype == np.float32
    for different in (other, first[:, ::-1]):
        assert np.all(np.abs(first - different).max(axis=(1, 2, 3, 4)) > 0.05)


@pytest.mark.slow
def test_an_images_views_depend_on_its_key_alone(small):
    """Not on its place, nor on the others, nor on how many they are."""
    everything = make_policy(32, views=('crop flip jitter drop blur', 'crop cutout noise rotate sobel'))
    views = np.asarray(augment(small, keys_of(8), everything))
    order = np.random.default_rng(0).permutation(8)
    np.testing.assert_array_equal(augment(small[order], keys_of(8)[order], everything), views[order])
    close(augment(small[:3], keys_of(8)[:3], everything), views[:3])
    for number in (0, 5):
        close(augment(small[[number]], keys_of(8)[np.array([number])], everything)[0], views[number])


def test_devices_need_not_talk_and_make_the_views_of_one(small):
    everything = make_policy(32, shared='flip', views=('crop flip jitter drop blur', 'crop cutout noise rotate sobel'))
    images = np.tile(small, [2, 1, 1, 1])
    mesh = Mesh(np.array(jax.devices()), ('data',))
    rows = NamedSharding(mesh, PartitionSpec('data'))
    sharded = jax.jit(device.augment, static_argnames='policy', in_shardings=(rows, rows), out_shardings=rows)
    compiled = sharded.lower(images, keys_of(16), everything).compile()
    for collective in ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute', 'reduce-scatter'):
        assert collective not in compiled.as_text()
    views = compiled(jax.device_put(images, rows), jax.device_put(keys_of(16), rows))
    assert len(views.sharding.device_set) == 8
    close(views, augment(images, keys_of(16), everything), 1e-6)


@pytest.mark.slow
def test_bytes_and_floats_give_the_same_views(small):
    policy = make_policy(24, views=('crop flip drop', 'jitter', ''))
    close(augment(small, keys_of(8), policy), augment((small / 255.0).astype(np.float32), keys_of(8), policy))


def test_views_of_images_that_are_not_cropped_are_resized(small):
    (plain, mirrored) = np.asarray(
        augment(small, keys_of(8), make_policy(48, views=('', 'flip'), parameters=ALWAYS))
    ).swapaxes(0, 1)
    close(plain, np.clip(by_host(lambda image: host.resize(image, 48, 48), small), 0.0, 1.0))
    np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])


def test_one_branch_with_a_shared_crop(faint):
    """Figure 5: both branches see one crop, only the second is transformed."""
    policy = make_policy(32, shared='crop', views=('', 'drop'), parameters=ALWAYS)
    plain, gray = np.asarray(augment(faint, keys_of(8), policy)).swapaxes(0, 1)
    close(gray, device.grayscale(plain))
    assert np.abs(plain - np.asarray(augment(faint, keys_of(8), make_policy(32, views=('',))))[:, 0]).max() > 0.05


@pytest.mark.slow
def test_an_operation_does_not_change_anothers_draw(small):
    """Crop and cutout fall at the same places whatever stands between them or in the other views."""
    crop, gray_mask = (
        np.asarray(augment(images, keys_of(8), make_policy(32, views=(view,))))[:, 0]
        for view, images in (('crop', small), ('cutout', np.zeros((8, 32, 32, 3), np.float32)))
    )
    beside = augment(small, keys_of(8), make_policy(32, views=('crop', 'jitter flip', 'noise')))
    close(beside[:, 0], crop, 1e-6)
    mask = gray_mask == 0.5
    covered = augment(small, keys_of(8), make_policy(32, views=('crop flip cutout',), parameters={'flip': {'p': 0.0}}))
    close(covered[:, 0], np.where(mask, 0.5, crop), 1e-6)
    twice = augment(np.zeros((8, 32, 32, 3), np.float32), keys_of(8), make_policy(32, views=('cutout cutout',)))
    assert np.all(twice[:, 0][mask] == 0.5)
    assert np.sum(twice == 0.5) > mask.sum()


@pytest.mark.parametrize('first', ['', *OPERATIONS])
def test_every_transformation_and_ordered_pair_can_be_made(first):
    """Traced only: which operations there are does not change what each of them does."""
    images, keys = jax.ShapeDtypeStruct((4, 40, 56, 3), jnp.uint8), jax.eval_shape(lambda: keys_of(4))
    for second in OPERATIONS:
        policy = make_policy(32, shared='crop', views=('', f'{first} {second}'), parameters=ALWAYS)
        views = jax.eval_shape(lambda images, keys, policy=policy: device.augment(images, keys, policy), images, keys)
        assert (views.shape, views.dtype) == ((4, 2, 32, 32, 3), jnp.float32), second


@pytest.mark.slow
def test_operations_before_the_crop_see_the_whole_image(small):
    policy = make_policy(32, views=('blur sobel crop', 'jitter noise cutout crop'), parameters=ALWAYS)
    views = np.asarray(augment(small, keys_of(8), policy))
    assert views.shape == (8, 2, 32, 32, 3)
    assert np.all((views >= 0.0) & (views <= 1.0))


# Parts of a policy.


def test_the_first_part_ends_with_the_last_crop():
    whole = make_policy(32, shared='flip', views=('crop flip jitter', 'drop', 'flip crop crop', 'crop blur crop blur'))
    first, rest = whole.split()
    assert (first.size, first.shared, first.applied) == (32, whole.shared, ())
    assert (rest.size, rest.shared, rest.applied) == (32, (), first.views)
    assert [len(view) for view in first.views] == [1, 0, 3, 3]
    assert all(a + b == view for a, b, view in zip(first.views, rest.views, whole.views, strict=True))
    with pytest.raises(ValueError, match='split the whole policy'):
        rest.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    'shared, views',
    [
        ('', ('crop flip drop', 'crop flip drop')),
        ('crop', ('', 'flip blur')),
        ('flip', ('crop cutout crop cutout rotate', 'cutout', 'crop')),
    ],
)
def test_parts_after_each_other_make_the_views_of_the_whole(faint, shared, views):
    """Also where the second part repeats an operation of the first: it draws as in the whole policy."""
    whole = make_policy(32, shared=shared, views=views)
    first, rest = whole.split()
    parts = augment(augment(faint, keys_of(8), first), keys_of(8), rest)
    close(parts, augment(faint, keys_of(8), whole))


# Mistakes.


@pytest.mark.parametrize(
    'shape, keys, policy, message',
    [
        ((4, 32, 32), 4, make_policy(32), r'must be \[B, H, W, 3\], or views \[B, 2, H, W, 3\]'),
        ((4, 32, 32, 3), 3, make_policy(32), 'must be typed keys, one for each of 4 images'),
        ((4, 3, 32, 32, 3), 4, make_policy(32), 'must be 2 views'),
        ((4, 2, 32, 32, 3), 4, make_policy(32, shared='flip'), r'policy.split\(\) makes the parts'),
        ((4, 32, 32, 3), 4, make_policy(32).split()[1], r'takes \[B, 2, H, W, 3\]'),
        ((4, 32, 40, 3), 4, make_policy(32, views=('rotate crop',)), 'rotate square images only'),
    ],
)
def test_shapes_that_do_not_fit_are_named(shape, keys, policy, message):
    with pytest.raises(ValueError, match=message):
        device.augment(jnp.zeros(shape), keys_of(keys), policy)
