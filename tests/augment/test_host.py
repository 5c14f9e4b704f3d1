"""The host's augmentation: each operation on the reference's numbers, and what a policy promises."""

import dataclasses
import functools

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

tf = pytest.importorskip('tensorflow', reason='the host augmentation needs TensorFlow')

from simclr_jax.augment import host, operations, policy  # noqa: E402

# The reference's numbers come from the same float32 arithmetic in a different order: some tens of roundings of 6e-8.
TOLERANCE = 1e-5
# Views are clipped at their end only: an operation sees the little by which the bicubic crop leaves [0, 1].
CLIPPING = 5e-3


@pytest.fixture(scope='module')
def fixed(oracle):
    return oracle('augment')


@pytest.fixture(scope='module')
def picture():
    """A smooth random colour image [48, 40, 3] in [0, 1]."""
    noise = np.random.default_rng(0).uniform(size=(48, 40, 3))
    smooth = scipy.ndimage.gaussian_filter(noise, (3, 3, 0))
    return ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


def close(actual, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance)


def close_to_reference(fixed, name, found, tolerance=TOLERANCE):
    close(fixed.pick(name, found), fixed[name], tolerance)


def over(function, images, values):
    """function(image, value) as [values, images, ...], the layout of the oracles."""
    return np.stack([np.stack([function(tf.constant(image), value) for image in images]) for value in values])


def of_unknown_size(function):
    """The function in a graph that does not know how large the image is, as before a crop."""
    signature = tf.TensorSpec([None, None, 3], tf.float32), tf.TensorSpec(None, tf.float32)
    return tf.function(function, input_signature=signature, autograph=False)


OPERATIONS = {
    'brightness_v2': (lambda x, v: host.change_brightness(x, v, 'multiply'), 'brightness_v2_factors'),
    'brightness_v1': (lambda x, v: host.change_brightness(x, v, 'add'), 'brightness_v1_deltas'),
    'contrast': (tf.image.adjust_contrast, 'contrast_factors'),
    'saturation': (tf.image.adjust_saturation, 'saturation_factors'),
    'hue': (tf.image.adjust_hue, 'hue_deltas'),
    'blur': (lambda x, v: host.blur(x, v, radius=2), 'blur_sigmas'),
}
OPERATIONS['blur, unknown size'] = of_unknown_size(OPERATIONS['blur'][0]), 'blur_sigmas'


@pytest.mark.parametrize('source', ['small', 'overshoot'])
@pytest.mark.parametrize('name', OPERATIONS)
def test_operation_is_the_references(fixed, source, name):
    function, values = OPERATIONS[name]
    close_to_reference(fixed, f'{source}/{name.split(",")[0]}', over(function, fixed[source], fixed[values]))


@pytest.mark.parametrize('source', ['small', 'overshoot'])
def test_grayscale_is_the_references(fixed, source):
    close_to_reference(fixed, f'{source}/grayscale', [host.grayscale(image) for image in fixed[source]])


@pytest.mark.parametrize('source', ['small', 'overshoot'])
@pytest.mark.parametrize('is_known', [True, False])
def test_jitter_is_the_references_in_every_order(fixed, source, is_known):
    values = tf.constant(fixed['jitter_values'], tf.float32)

    def jitter(image, order):
        return host.jitter(image, tf.cast(order, tf.int32), *tf.unstack(values))

    jitter = jitter if is_known else of_unknown_size(jitter)
    close_to_reference(fixed, f'{source}/jitter', over(jitter, fixed[source], fixed['jitter_orders']))


def test_large_image_operations_are_the_references(fixed):
    image = host.to_unit_range(tf.constant(fixed['large']))
    index = fixed['large_index']

    def some_pixels(function, values):
        return np.stack([function(image, value).numpy()[np.ix_(index, index)] for value in values])

    blurred = some_pixels(functools.partial(host.blur, radius=11), fixed['blur_sigmas'])
    close_to_reference(fixed, 'large/blur', blurred)
    contrasted = some_pixels(tf.image.adjust_contrast, fixed['large/contrast_factors'])
    close_to_reference(fixed, 'large/contrast', contrasted)


def test_blur_kernel_sizes_are_the_references(fixed):
    for kernel_size in (2, 9):
        blurred = host.blur(tf.constant(fixed['small'][0]), 2.0, radius=kernel_size // 2)
        close_to_reference(fixed, f'small/blur_k{kernel_size}', blurred[None, None])


@pytest.mark.parametrize('source, boxes', [('small', 'crop_boxes'), ('large', 'large_crop_boxes')])
def test_crop_and_resize_is_the_references(fixed, source, boxes):
    image = tf.constant(fixed['small'][0] if source == 'small' else fixed['large'])
    for size, step in ((32, 1), (224, 4)):
        views = np.stack([host.crop_and_resize(image, box, size)[::step, ::step] for box in fixed[boxes]])
        close_to_reference(fixed, f'{source}/crop_resize_{size}', views)


def test_resize_and_flip_are_the_references(fixed):
    image = tf.constant(fixed['small'][0])
    close_to_reference(fixed, 'small/resize_nonsquare', host.resize(image, 30, 50)[None])
    flip = policy.make_policy(32, views=('flip',), parameters={'flip': {'p': 1.0}})
    resized_mirror = host.resize(tf.constant(fixed['small/flip_left_right'][0]), 32, 32)
    close(host.augment(image, [0, 0], flip)[0], np.clip(resized_mirror, 0.0, 1.0))


def test_center_crop_boxes_are_the_references(fixed):
    for height, width, out_height, out_width, *box in fixed['center_crop_boxes']:
        assert list(host.center_crop_box(height, width, aspect=out_width / out_height).numpy()) == box


def test_center_crop_is_the_references(fixed):
    box = host.center_crop_box(48, 40)
    small = [tf.constant(image) for image in fixed['small'][:2]]
    views = np.stack([host.crop_and_resize(image, box, 32) for image in small])
    close_to_reference(fixed, 'small/center_crop_32', views)
    close_to_reference(fixed, 'small/eval_32', np.clip(views, 0.0, 1.0))
    close_to_reference(fixed, 'small/center_crop_224', host.crop_and_resize(small[0], box, 224)[None])
    close_to_reference(fixed, 'small/eval_224', host.center_crop(small[0], 224)[None])
    large, box = tf.constant(fixed['large']), host.center_crop_box(224, 224)
    close_to_reference(fixed, 'large/center_crop_32', host.crop_and_resize(large, box, 32))
    close_to_reference(fixed, 'large/center_crop_224', host.crop_and_resize(large, box, 224)[::4, ::4])


def test_the_whole_shorter_side_is_kept_where_asked():
    """SimCLR's linear transfer experiments: the short side becomes the size, then the central square."""
    image = tf.constant(np.random.default_rng(0).random((48, 64, 3)), tf.float32)
    expected = np.clip(host.resize(image[:, 8:56], 40, 40), 0, 1)
    close(host.center_crop(image, 40, kept=1.0), expected)


def test_small_images_are_evaluated_whole(picture):
    """At 32 pixels nothing is cropped, and an image that has the size already is unchanged."""
    square = picture[:32, :32]
    np.testing.assert_array_equal(host.center_crop(tf.constant(square), 32), square)
    whole = np.clip(host.resize(tf.constant(picture), 32, 32), 0.0, 1.0)
    np.testing.assert_array_equal(host.center_crop(tf.constant(picture), 32), whole)


def test_sobel_is_scipys(picture):
    edges = host.sobel(tf.constant(picture))
    for channel in range(3):
        plane = picture[..., channel].astype(np.float64)
        gradient = [scipy.ndimage.sobel(plane, axis, mode='mirror') for axis in (0, 1)]
        close(edges[..., channel], np.hypot(*gradient) / 4.0, 1e-6)


def test_rotations_are_numpys(picture):
    for turns in range(4):
        np.testing.assert_array_equal(host.rotate(tf.constant(picture), turns), np.rot90(picture, turns))


@pytest.mark.parametrize('center, covered', [((0.5, 0.5), 0.25), ((0.0, 0.0), 0.0625), ((1.0, 0.5), 0.125)])
def test_cutout_covers_what_lies_inside_the_image(center, covered):
    image = host.cutout(tf.zeros([32, 32, 3]), tf.constant(center), side=0.5, fill=0.7)
    assert np.mean(image == np.float32(0.7)) == covered


def test_noise_has_the_standard_deviation_asked_for():
    noise = policy.make_policy(64, views=('noise',), parameters={'noise': {'std': (0.1, 0.1)}})
    values = host.augment(tf.fill([64, 64, 3], 0.5), [1, 2], noise).numpy().ravel() - 0.5
    standard_error = 0.1 / np.sqrt(2 * values.size)
    assert abs(values.std() - 0.1) < 4 * standard_error


def test_blur_draws_sigma_uniformly_for_each_image():
    """A blurred point shows its sigma: neighbour / centre = exp(-1 / (2 sigma^2)). The test has 1 % size."""
    point = np.zeros((32, 32, 3), np.float32)
    point[16, 16] = 1.0
    blurred = policy.make_policy(32, views=('blur',))
    dataset = tf.data.Dataset.range(1000).map(
        lambda index: host.augment(tf.constant(point), tf.stack([index, 3]), blurred)[0, 16, 15:17, 0]
    )
    neighbour, center = np.stack(list(dataset.as_numpy_iterator())).astype(np.float64).T
    is_blurred = neighbour > 0.0
    assert abs(is_blurred.mean() - 0.5) < 4 * 0.5 / np.sqrt(1000)
    sigma = np.sqrt(-0.5 / np.log((neighbour / center)[is_blurred]))
    assert scipy.stats.kstest(sigma, scipy.stats.uniform(0.1, 1.9).cdf).pvalue > 0.01


def views_of(image, size=32, seed=(3, 4), **description):
    return host.augment(tf.constant(image), list(seed), policy.make_policy(size, **description)).numpy()


def test_seed_decides_the_pixels(picture):
    first, again, other = (views_of(picture, seed=seed) for seed in ((1, 2), (1, 2), (1, 3)))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (2, 32, 32, 3)
    assert np.abs(first - other).max() > 0.05
    assert np.abs(first[0] - first[1]).max() > 0.05


def test_tf_data_gives_the_eager_pixels_and_static_shapes(picture):
    simclr = policy.make_policy(32)
    seeds = np.arange(8).reshape(4, 2)
    images = tf.data.Dataset.from_tensors(picture).repeat(4)
    images = images.map(lambda image: tf.ensure_shape(image[: 47 + tf.size(image) % 2], [None, None, 3]))
    dataset = tf.data.Dataset.zip(images, tf.data.Dataset.from_tensor_slices(seeds))
    dataset = dataset.map(functools.partial(host.augment, policy=simclr))
    assert dataset.element_spec.shape == (2, 32, 32, 3)
    for views, seed in zip(dataset.as_numpy_iterator(), seeds, strict=True):
        close(views, views_of(picture[:47], seed=seed), 1e-5)


def test_bytes_and_floats_give_the_same_views(picture):
    """uint8 is divided by 255 after the resize, which moves float32 roundings only."""
    pixels = np.round(picture * 255).astype(np.uint8)
    for view in ('crop flip drop', 'jitter', ''):
        close(views_of(pixels, views=(view,)), views_of(pixels / np.float32(255), views=(view,)), 1e-5)


def test_an_operation_does_not_change_anothers_draw(picture):
    """Crop and cutout fall at the same places whatever stands between them or in the other views."""
    (crop,) = views_of(picture, views=('crop',))
    (gray,) = views_of(picture, views=('crop drop',), parameters={'drop': {'p': 1.0}})
    close(gray, host.grayscale(crop), CLIPPING)
    np.testing.assert_array_equal(views_of(picture, views=('crop', 'jitter flip', 'noise'))[0], crop)
    covered = crop.copy()
    mask = views_of(np.zeros_like(picture), views=('cutout',))[0] == 0.5
    covered[mask] = 0.5
    np.testing.assert_array_equal(views_of(picture, views=('crop cutout',))[0], covered)


def test_operations_apply_in_the_order_in_which_they_stand(picture):
    square = picture[:32, :32]
    mask = views_of(np.zeros_like(square), views=('cutout',))[0] == 0.5
    assert 0 < mask.mean() < 1
    edges_then_patch = tf.where(mask, 0.5, host.sobel(tf.constant(square)))
    patch_then_edges = host.sobel(tf.where(mask, 0.5, square))
    close(views_of(square, views=('sobel cutout',))[0], edges_then_patch, 1e-6)
    close(views_of(square, views=('cutout sobel',))[0], patch_then_edges, 1e-6)


def test_repeated_operation_draws_anew(picture):
    once = views_of(picture, views=('cutout',))[0] == 0.5
    twice = views_of(picture, views=('cutout cutout',))[0] == 0.5
    assert np.all(twice[once])
    assert twice.sum() > once.sum()


def test_one_branch_with_a_shared_crop(picture):
    """Figure 5: both branches see one crop, only the second is transformed."""
    plain, gray = views_of(picture, shared='crop', views=('', 'drop'), parameters={'drop': {'p': 1.0}})
    close(gray, host.grayscale(plain), CLIPPING)
    assert np.abs(plain - views_of(picture, views=('',))[0]).max() > 0.05


@pytest.mark.parametrize('first', ['', *operations.OPERATIONS])
def test_every_transformation_and_ordered_pair_runs(picture, first):
    parameters = {name: {'p': 1.0} for name in operations.OPERATIONS if name != 'crop'}
    for second in operations.OPERATIONS:
        description = {'shared': 'crop', 'views': ('', f'{first} {second}'), 'parameters': parameters}
        views = views_of(picture, **description)
        assert views.shape == (2, 32, 32, 3), second
        assert np.all((views >= 0.0) & (views <= 1.0)), second
        # Two flips, or two rotations by half a turn, undo each other.
        assert np.any(views[0] != views[1]) or first == second, second


def test_operations_before_the_crop_see_the_whole_image(picture):
    """An image need not be square before it is cropped: rotation then swaps its sides."""
    for view in ('rotate crop', 'blur sobel crop', 'jitter noise cutout crop'):
        assert views_of(picture, views=(view,), parameters={'blur': {'p': 1.0}}).shape == (1, 32, 32, 3)


def test_an_operation_that_only_the_devices_have_is_named(picture):
    added = dataclasses.make_dataclass(
        'Added', [('p', float, 1.0)], frozen=True, namespace={'number': 9, 'uniforms': 1}
    )
    with pytest.raises(ValueError, match=r'Added\(p=1.0\): only the devices have .* data.feed=hybrid .* or .*resident'):
        host.augment(tf.constant(picture), [0, 1], policy.Policy(32, (), ((added(),),)))


@pytest.mark.parametrize('operation', ['jitter', 'blur'])
@pytest.mark.parametrize('is_cropped', [True, False])
def test_costly_operations_are_compiled_where_the_size_is_known(operation, is_cropped):
    """Behind a crop it is; a program for every size that images have would cost more than it saves."""
    names = f'crop {operation}' if is_cropped else f'{operation} crop'
    views = policy.make_policy(32, views=(names,))
    signature = tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([2], tf.int32)
    augment = tf.function(lambda image, seed: host.augment(image, seed, views), input_signature=signature)
    definition = augment.get_concrete_function().graph.as_graph_def()
    assert ('_XlaMustCompile' in str(definition)) == is_cropped
