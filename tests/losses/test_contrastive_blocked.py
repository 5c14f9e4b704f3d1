"""NT-Xent in blocks of anchors: the numbers and gradients of the plain form, from memory for one block."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import build, sharding
from simclr_jax.build import make_task
from simclr_jax.config import base_config
from simclr_jax.losses import contrastive
from support.losses import loss_by_loops, on_devices, random_views, value_and_gradient

# Of 16 images with 2 or 3 views: one at a time, a last block that is shorter, more than there are.
BLOCK_SIZES = [1, 5, 100]


def nt_xent(block_size=None, normalize=True, temperature=0.5):
    return functools.partial(contrastive.nt_xent, temperature=temperature, normalize=normalize, block_size=block_size)


def assert_same(found, expected, relative):
    """Loss, metrics and gradient, this one relative to its largest entry since the entries of a gradient cancel."""
    (loss, metrics), gradient = found
    (expected_loss, expected_metrics), expected_gradient = expected
    assert (loss.dtype, gradient.dtype) == (expected_loss.dtype, expected_gradient.dtype)
    np.testing.assert_allclose(loss, expected_loss, rtol=relative)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=relative * np.abs(expected_gradient).max())
    assert metrics.keys() == expected_metrics.keys() == {'contrast_accuracy', 'contrast_entropy'}
    for key in metrics:
        # Near zero an entropy in nats is what rounding leaves of log 1.
        np.testing.assert_allclose(metrics[key], expected_metrics[key], rtol=relative, atol=relative / 1000)


@functools.cache
def plain_numbers(dtype, views=2, normalize=True):
    """Of the 16 images that the next two tests compare."""
    return value_and_gradient(nt_xent(normalize=normalize))(random_views(16, views, 8).astype(dtype))


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize(
    'views, normalize',
    [
        (2, True),
        (3, False),
        pytest.param(2, False, marks=pytest.mark.slow),
        pytest.param(3, True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize('block_size', BLOCK_SIZES)
def test_blocks_have_the_numbers_of_the_plain_form(x64, block_size, views, normalize, devices):
    z = random_views(16, views, 8).astype(np.float64)
    blocked = nt_xent(block_size, normalize)
    found = value_and_gradient(blocked if devices == 1 else on_devices(blocked, devices))(z)
    assert_same(found, plain_numbers(np.float64, views, normalize), 1e-12)


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('block_size', BLOCK_SIZES)
def test_in_float32_they_differ_by_rounding(block_size, devices):
    z = random_views(16, 2, 8)
    blocked = nt_xent(block_size)
    found = value_and_gradient(blocked if devices == 1 else on_devices(blocked, devices))(z)
    assert_same(found, plain_numbers(np.float32), 1e-6)


@pytest.mark.parametrize('views', [2, 3])
@pytest.mark.parametrize('normalize', [True, False])
def test_blocks_equal_the_formula(x64, views, normalize):
    z = random_views(5, views, 4).astype(np.float64)
    loss, _ = jax.jit(nt_xent(3, normalize))(z)
    np.testing.assert_allclose(loss, loss_by_loops('nt_xent', z, normalize), rtol=1e-12)


@pytest.mark.parametrize('devices', [1, 5])
def test_gradients_equal_finite_differences(x64, devices):
    z = jnp.asarray(random_views(5, 3, 4), jnp.float64)
    direction = jnp.asarray(random_views(5, 3, 4, seed=1), jnp.float64)
    blocked = nt_xent(4)
    blocked = blocked if devices == 1 else on_devices(blocked, devices)
    loss = jax.jit(lambda z: blocked(z)[0])
    step = 1e-6
    slope = (loss(z + step * direction) - loss(z - step * direction)) / (2 * step)
    # Central differences at this step are good to about 1e-9.
    np.testing.assert_allclose(np.vdot(jax.jit(jax.grad(loss))(z), direction), slope, rtol=1e-6)


@pytest.mark.slow
def test_the_temperature_has_its_gradient(x64):
    z = jnp.asarray(random_views(5, 2, 4), jnp.float64)

    def slope(block_size):
        return jax.grad(lambda t: contrastive.nt_xent(z, temperature=t, block_size=block_size)[0])(0.3)

    np.testing.assert_allclose(slope(3), slope(None), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize('temperature', [1e-3, 1e3])
def test_extreme_temperatures(temperature):
    """Logits of a thousand are rounded to 1e-4 in float32, and so is what is relative in their exponentials."""
    z = random_views(16, 2, 8)
    found = value_and_gradient(nt_xent(5, temperature=temperature))(z)
    assert_same(found, value_and_gradient(nt_xent(temperature=temperature))(z), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('block_size', [3, 16])
def test_rows_of_zeros_stay_finite(block_size):
    z = random_views(8, 2, 8) * np.array([0, 1] * 4, np.float32)[:, None, None]
    for temperature in (1e-2, 0.5):
        found = value_and_gradient(nt_xent(block_size, temperature=temperature))(z)
        expected = value_and_gradient(nt_xent(temperature=temperature))(z)
        assert_same(found, expected, 1e-5)
        # Those of the zeros are of order 1e6 and must not hide the others.
        np.testing.assert_allclose(
            found[1][1::2], expected[1][1::2], rtol=0, atol=1e-5 * np.abs(expected[1][1::2]).max()
        )


@pytest.mark.parametrize('value', [0, 1])
def test_collapse_costs_the_logarithm_of_the_candidates_and_pulls_nowhere(value):
    z = jnp.full((8, 2, 3), value, jnp.float32)
    (loss, metrics), gradient = value_and_gradient(nt_xent(3))(z)
    np.testing.assert_allclose(loss, np.log(15), rtol=1e-6)
    np.testing.assert_allclose(metrics['contrast_entropy'], np.log(8), rtol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_perfect_views_leave_the_negatives_alone():
    """Orthonormal images: l = log(1 + 2 (N - 1) exp(-1 / T)) is tiny, and not lost in rounding."""
    z = jnp.repeat(jnp.eye(4)[:, None], 2, axis=1)
    loss, metrics = jax.jit(nt_xent(3, temperature=0.05))(z)
    np.testing.assert_allclose(loss, 6 * np.exp(-20.0), rtol=1e-5)
    assert metrics['contrast_accuracy'] == 1


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype):
    z = jnp.asarray(random_views(4, 2, 8)).astype(dtype)
    (loss, _), gradient = value_and_gradient(nt_xent(3))(z)
    np.testing.assert_allclose(loss, jax.jit(nt_xent())(z.astype(jnp.float32))[0], rtol=1e-6)
    assert (loss.dtype, gradient.dtype) == (jnp.float32, dtype)


@pytest.mark.parametrize('devices', [1, 8])
def test_memory_is_that_of_a_block(devices):
    """Temporaries of value and gradient: the logits of some blocks and a few copies of the rows, no more."""
    images, dimensions, block_size = 2048, 16, 64

    def temporaries(loss):
        loss = loss if devices == 1 else on_devices(loss, devices)
        z = jax.ShapeDtypeStruct((images, 2, dimensions), jnp.float32)
        return value_and_gradient(loss).lower(z).compile().memory_analysis().temp_size_in_bytes

    rows = 2 * images
    logits, block, copy = (4 * rows * count for count in (rows // devices, block_size, dimensions))
    blocked = temporaries(nt_xent(block_size))
    assert temporaries(nt_xent()) > logits
    assert blocked < 4 * block + 10 * copy
    assert blocked < temporaries(nt_xent(4 * block_size))


def test_the_configuration_says_how_many_at_a_time(monkeypatch):
    asked = []

    def recorded(z, **settings):
        asked.append(settings['block_size'])
        return contrastive.nt_xent(z, **settings)

    monkeypatch.setattr(build, 'nt_xent', recorded)
    mesh = sharding.make_mesh(jax.devices()[:2])
    config = base_config()
    outputs = {'projection': jnp.asarray(random_views(8, 2, 8))}
    numbers = []
    for block_size in (0, 3):
        config.loss.block_size = block_size
        task = make_task(config, 0, mesh)
        numbers.append(jax.jit(task.loss)(outputs, {}))
        assert asked.pop() == (block_size or None)
    (plain, plain_metrics), (blocked, blocked_metrics) = numbers
    np.testing.assert_allclose(blocked, plain, rtol=1e-6)
    assert blocked_metrics.keys() == plain_metrics.keys()


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(ValueError, match=r'block_size=0.*at least 1'):
        nt_xent(0)(jnp.ones((4, 2, 8)))
    for shape in [(4, 8), (4, 1, 8), (1, 2, 8)]:
        with pytest.raises(ValueError, match='at least two'):
            nt_xent(2)(jnp.ones(shape))
