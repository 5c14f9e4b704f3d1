"""Batch normalisation against NumPy in float64, and its forms against each other."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from simclr_jax.models.batch_norm import BatchNorm
from simclr_jax.models.layers import Conv
from simclr_jax.ops.precision import at_least_float32
from simclr_jax.ops.rectifier import relu
from simclr_jax.planning.flops import count_flops

EIGHT_DEVICES = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))


def sharded(x):
    return jax.device_put(x, NamedSharding(EIGHT_DEVICES, PartitionSpec('data')))


def test_batch_norm_against_numpy():
    x = 3 + 2 * np.random.default_rng(0).standard_normal((6, 5, 4, 3))
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), jnp.asarray(x, jnp.float32), train=False)
    y, moved = layer.apply(variables, jnp.asarray(x, jnp.float32), train=True, mutable=['batch_stats'])
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    # E[x^2] - E[x]^2 in float32, with E[x^2] about three times the variance.
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5), atol=1e-5)
    np.testing.assert_allclose(moved['batch_stats']['mean'], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(moved['batch_stats']['var'], 0.9 + 0.1 * variance, rtol=1e-5)


def test_batch_norm_of_a_constant_is_finite():
    # Rounding makes E[x^2] - E[x]^2 negative for many constants.
    constants = jnp.linspace(100, 101, 64) * jnp.ones((7, 1))
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), constants, train=False)
    y, moved = layer.apply(variables, constants, train=True, mutable=['batch_stats'])
    assert np.isfinite(y).all()
    assert moved['batch_stats']['var'].min() >= 0.9


def test_batch_norm_sees_the_global_batch():
    # Eight devices with different means: statistics of one device's rows would remove the differences.
    x = jnp.repeat(jnp.arange(8.0), 2)[:, None] + drawn((16, 3))
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x, train=False)
    apply = jax.jit(lambda v, x: layer.apply(v, x, train=True, mutable=['batch_stats']))
    compare = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(compare, apply(variables, sharded(x)), apply(variables, x))


def drawn(shape, seed=0):
    """Standard normal, by NumPy: XLA takes a second to compile such a draw."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def random_variables(channels, features):
    """Variables of a Conv and the BatchNorm behind it. The scales have both signs, and one of them is 0."""
    rng = np.random.default_rng(1)
    scale = rng.standard_normal(features)
    scale[0] = 0
    kernel = rng.standard_normal((1, 1, channels, features)) / np.sqrt(channels)
    norm = {'scale': scale, 'bias': rng.standard_normal(features)}
    moving = {'mean': rng.standard_normal(features), 'var': 0.5 + rng.random(features)}
    variables = {'params': {'conv': {'kernel': kernel}, 'norm': norm}, 'batch_stats': {'norm': moving}}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), variables)


def rectified(shape):
    """Inputs like those of 1x1 convolutions: positive numbers, whose mean is above their deviation."""
    return jnp.maximum(1 + drawn(shape), 0)


class Folded(nn.Module):
    """A 1x1 convolution and its batch norm, fused or one after the other."""

    features: int
    strides: int
    fold: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        conv = Conv(self.features, 1, self.strides, name='conv', dtype=self.dtype)
        norm = BatchNorm(name='norm')
        return conv.normalized(x, norm, train=train) if self.fold else norm(conv(x), train=train)


class PooledStem(nn.Module):
    """A batch norm of the maxima only, or the maxima of a batch norm of all values."""

    only_maxima: bool

    @nn.compact
    def __call__(self, x, train):
        pool = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding='SAME')
        norm = BatchNorm(name='norm')
        return norm.pooled(x, pool, train=train) if self.only_maxima else pool(norm(x, train=train))


class Rectified(nn.Module):
    """A batch norm and the ReLU behind it, fused or one after the other, with half of x as the shortcut."""

    fused: bool
    shortcut: bool

    @nn.compact
    def __call__(self, x, train):
        norm = BatchNorm(name='norm')
        shortcut = x / 2 if self.shortcut else None
        if self.fused:
            return norm.rectified(x, shortcut, train=train)
        y = norm(x, train=train)
        return jnp.maximum(y + shortcut if self.shortcut else y, 0)


def outcome(model, variables, x, train):
    """Outputs, moved statistics, and the gradients of all parameters and of x."""

    def loss(params, x):
        outputs, moved = model.apply(variables | {'params': params}, x, train, mutable=['batch_stats'])
        outputs = at_least_float32(outputs)
        # The sum of normalised values is constant, and so is that of their squares.
        weights = drawn(outputs.shape, seed=2)
        return (weights.astype(outputs.dtype) * outputs).sum(), (outputs, moved)

    gradients, (outputs, moved) = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables['params'], x)
    return {'outputs': outputs, 'moved': moved, 'gradients': gradients}


def assert_close(found, expected, tolerance):
    """Compares trees of arrays. The tolerance is relative to the largest entry of each array."""

    def compare(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-3))

    jax.tree.map(compare, found, expected)


def relative_errors(found, exact):
    """Relative Euclidean error of each array."""

    def relative(a, b):
        difference = (a.astype(b.dtype) - b).ravel()
        return float(jnp.linalg.norm(difference) / jnp.linalg.norm(b.ravel()))

    return jax.tree.map(relative, found, exact)


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('strides', [1, 2])
def test_folded_into_a_convolution(strides, train, x64):
    x, variables = rectified((8, 5, 6, 4)), random_variables(4, 16)
    x, variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (x, variables))
    folded, apart = (outcome(Folded(16, strides, fold), variables, x, train) for fold in (True, False))
    assert_close(folded, apart, 1e-12)


def test_folded_in_float32():
    x, variables = rectified((64, 7, 7, 16)), random_variables(16, 64)
    folded, apart = (outcome(Folded(64, 1, fold), variables, x, True) for fold in (True, False))
    # The rounding of sums of 3,136 numbers, in another order.
    assert_close(folded, apart, 1e-5)


def test_folded_in_bfloat16_is_as_exact_as_apart():
    # The widths of ResNet-50. With fewer channels the roundings of few weights decide.
    x, variables = rectified((64, 7, 7, 64)), random_variables(64, 256)
    exact = outcome(Folded(256, 1, False), variables, x, True)
    folded, apart = (
        relative_errors(outcome(Folded(256, 1, fold, jnp.bfloat16), variables, x, True), exact)
        for fold in (True, False)
    )
    # All values are rounded to 8 bits a few times. The outputs are rounded once or twice.
    assert max(jax.tree.leaves(folded)) < 2**-6
    assert folded['outputs'] < 1.2 * apart['outputs'] < 2**-7


def test_folded_sees_the_global_batch():
    # Eight devices with different means.
    x, variables = (
        rectified((16, 3, 3, 4)) + jnp.repeat(jnp.arange(8.0), 2)[:, None, None, None],
        random_variables(4, 8),
    )
    model = Folded(8, 1, True)
    assert_close(outcome(model, variables, sharded(x), True), outcome(model, variables, x, True), 1e-5)


def test_folding_a_constant_is_finite():
    constants = jnp.linspace(100, 101, 8) * jnp.ones((2, 3, 3, 1))
    variables = random_variables(8, 16)
    found = outcome(Folded(16, 1, True), variables, constants, True)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert found['moved']['batch_stats']['norm']['var'].min() >= 0.9 * 0.5


@pytest.mark.parametrize('train', [True, False])
def test_only_the_maxima_are_normalised(train):
    x = drawn((4, 9, 8, 16))
    pooled, whole = (outcome(PooledStem(only), norm_variables(16), x, train) for only in (True, False))
    # A channel of scale 0 is constant before the pool. It is not defined which of the equal values is the largest.
    for found in (pooled, whole):
        found['gradients'][0]['norm']['scale'] = found['gradients'][0]['norm']['scale'][1:]
    assert_close(pooled, whole, 1e-6)


def norm_variables(channels):
    variables = random_variables(1, channels)
    return {'params': {'norm': variables['params']['norm']}, 'batch_stats': variables['batch_stats']}


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('shortcut', [True, False])
# The last shape is that between convolutions that use another order of axes inside.
@pytest.mark.parametrize('shape', [(32, 5), (8, 5, 6, 4), (4, 5, 6, 64)])
def test_rectified(shape, shortcut, train):
    x, variables = 1 + drawn(shape), norm_variables(shape[-1])
    fused, apart = (outcome(Rectified(fused, shortcut), variables, x, train) for fused in (True, False))
    assert_close(fused, apart, 2e-6)


@pytest.mark.parametrize('shortcut', [True, False])
def test_rectified_in_float64(shortcut, x64):
    x, variables = 1 + drawn((8, 5, 6, 4)), norm_variables(4)
    x, variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (x, variables))
    fused, apart = (outcome(Rectified(fused, shortcut), variables, x, True) for fused in (True, False))
    assert_close(fused, apart, 1e-13)


@pytest.mark.parametrize('shortcut', [True, False])
def test_rectified_in_bfloat16_is_as_exact_as_apart(shortcut):
    x, variables = 1 + drawn((64, 7, 7, 16)), norm_variables(16)
    x = x.astype(jnp.bfloat16)
    exact = outcome(Rectified(False, shortcut), variables, x.astype(jnp.float32), True)
    fused, apart = (
        relative_errors(outcome(Rectified(fused, shortcut), variables, x, True), exact) for fused in (True, False)
    )
    assert all(a <= 1.05 * b + 1e-6 for a, b in zip(*map(jax.tree.leaves, (fused, apart)), strict=True))


@pytest.mark.parametrize('shortcut', [True, False])
def test_rectified_keeps_its_input_alone_or_with_its_result(shortcut):
    x, variables = drawn((8, 5, 6, 4)), norm_variables(4)

    def kept(fused):
        def run(x):
            return Rectified(fused, shortcut).apply(variables, x, True, mutable=['batch_stats'])[0]

        return sum(leaf.size == x.size for leaf in jax.tree.leaves(jax.vjp(run, x)[1]))

    assert kept(fused=True) == 1 + shortcut < kept(fused=False)


def test_rectified_sees_the_global_batch():
    x = drawn((16, 3, 3, 64)) + jnp.repeat(jnp.arange(8.0), 2)[:, None, None, None]
    model, variables = Rectified(True, True), norm_variables(64)
    assert_close(outcome(model, variables, sharded(x), True), outcome(model, variables, x, True), 1e-5)


def test_rectifier_and_its_gradient():
    x = jnp.asarray([-2.0, -0.0, 0.0, 1e-30, 3.0])
    for dtype in (jnp.float32, jnp.bfloat16):
        value, pull = jax.vjp(relu, x.astype(dtype))
        np.testing.assert_array_equal(value, jax.nn.relu(x.astype(dtype)))
        np.testing.assert_array_equal(pull(jnp.ones_like(value))[0], [0, 0, 0, 1, 1])


def test_the_count_of_operations_is_that_of_the_network():
    # The convolution counts once, and twice more for its gradients. The statistics are not counted.
    def count(fold):
        run = functools.partial(outcome, Folded(16, 1, fold), train=True)
        return count_flops(jax.make_jaxpr(run)(random_variables(4, 16), x=rectified((2, 3, 3, 4))).jaxpr)

    assert count(True) == count(False) == 3 * 2 * (2 * 3 * 3) * 4 * 16
