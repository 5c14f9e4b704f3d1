"""Pooling of feature maps: the benchmark's windows for ResNet-50, and a rule for every other network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.models.pooling import pool_to


def average_pool(x, window, stride, padding):
    """PyTorch's AvgPool2d(window, stride, padding) of x [N, H, W, C]: zeros of the padding count, in float64."""
    x = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    starts = range(0, x.shape[1] - window + 1, stride)
    rows = [[x[:, i : i + window, j : j + window].mean((1, 2)) for j in starts] for i in starts]
    return np.moveaxis(np.asarray(rows), 2, 0)


def random_map(side, channels):
    return np.random.default_rng(side).standard_normal((1, side, side, channels)).astype(np.float32)


@pytest.mark.parametrize(
    'side, channels, window, stride, padding, pooled, values',
    [
        (112, 64, 10, 10, 4, 12, 9216),
        (56, 256, 16, 8, 0, 6, 9216),
        (28, 512, 13, 5, 0, 4, 8192),
        (14, 1024, 8, 3, 0, 3, 9216),
        (7, 2048, 6, 1, 0, 2, 8192),
    ],
)
def test_resnet50_has_the_windows_of_the_benchmark(side, channels, window, stride, padding, pooled, values):
    x = random_map(side, channels)
    found = pool_to(jnp.asarray(x))
    assert found.shape == (1, pooled, pooled, channels)
    assert found[0].size == values
    # Sums of up to 256 float32 values of size 1.
    np.testing.assert_allclose(found, average_pool(x, window, stride, padding), atol=1e-5)


@pytest.mark.parametrize(
    'side, channels, pooled',
    [
        (32, 64, 11),  # 12 would fit: windows of 3 pixels, the eleventh has 2
        (56, 64, 12),
        (16, 128, 8),
        (7, 512, 4),
        (4, 512, 4),  # fits as it is
        (2, 8192, 1),
        (3, 20000, 1),  # one window at least, though 20000 values exceed the bound
    ],
)
def test_other_maps_are_cut_into_windows(side, channels, pooled):
    x = random_map(side, channels)
    found = pool_to(jnp.asarray(x))
    assert found.shape == (1, pooled, pooled, channels)
    window = -(-side // pooled)
    starts = range(0, side, window)
    expected = [[x[0, i : i + window, j : j + window].mean((0, 1)) for j in starts] for i in starts]
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


@pytest.mark.parametrize('side', range(1, 34))
@pytest.mark.parametrize('max_values', [1, 100, 1000])
def test_every_map_fits_its_bound_and_constants_stay(side, max_values):
    shape = jax.eval_shape(lambda: pool_to(jnp.zeros((2, side, side, 3)), max_values)).shape
    assert shape[1] == shape[2] >= 1
    assert shape[1] ** 2 * 3 <= max(max_values, 3)
    if side % 8 == 3:
        np.testing.assert_allclose(pool_to(jnp.ones((1, side, side, 3)), max_values), 1, rtol=1e-6)


def test_half_precision_maps_are_averaged_in_float32():
    x = 1 + 2**-7 * jnp.arange(64, dtype=jnp.bfloat16).reshape(1, 8, 8, 1)
    pooled = pool_to(x, max_values=1)
    assert pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled[0, 0, 0, 0], np.asarray(x, np.float64).mean(), rtol=1e-6)


@pytest.mark.parametrize(
    'shape, max_values, message', [((1, 4, 5, 3), 9216, r'\(1, 4, 5, 3\) is not square'), ((1, 4, 4, 3), 0, '=0 must')]
)
def test_mistakes_are_named(shape, max_values, message):
    with pytest.raises(ValueError, match=message):
        pool_to(jnp.zeros(shape), max_values)
