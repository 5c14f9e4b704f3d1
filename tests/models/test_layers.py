"""conv_bn computes what its layers compute one after the other, and chooses the cheapest form of them."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.models.batch_norm import BatchNorm
from simclr_jax.models.layers import Conv, conv_bn, dense, dense_bn, relu

CHANNELS = 4
FORMS = ('__call__', 'rectified', 'folded', 'pooled')


def max_pool(x):
    return nn.max_pool(x, (3, 3), (2, 2), 'SAME')


class Layers(nn.Module):
    """Convolution, norm, pooling, shortcut and activation: through conv_bn or one after the other."""

    through_conv_bn: bool
    features: int
    kernel_size: int
    strides: int
    pool: Callable | None
    activation: Callable | None

    @nn.compact
    def __call__(self, x, shortcut, train):
        size = self.features, self.kernel_size, self.strides
        if self.through_conv_bn:
            return conv_bn(
                x,
                *size,
                names=('conv', 'bn'),
                train=train,
                max_pool=self.pool,
                shortcut=shortcut,
                activation=self.activation,
            )
        y = BatchNorm(name='bn')(Conv(*size, name='conv')(x), train=train)
        y = y if self.pool is None else self.pool(y)
        y = y if shortcut is None else y + shortcut
        return y if self.activation is None else self.activation(y)


# Features, kernel size, strides, pooling, whether there is a shortcut, activation, and the form of the norm.
CASES = [
    (6, 3, 1, None, False, relu, 'rectified'),
    (6, 3, 2, None, True, relu, 'rectified'),
    (6, 3, 1, None, False, None, '__call__'),
    (6, 3, 1, None, True, jnp.tanh, '__call__'),
    (6, 1, 1, None, False, relu, 'rectified'),
    (6, 1, 1, None, True, relu, 'folded'),
    (6, 1, 2, None, False, None, 'folded'),
    (6, 1, 1, None, False, jnp.tanh, 'folded'),
    # To fewer channels, the covariance of the input costs more than a pass over the result.
    (3, 1, 1, None, False, None, '__call__'),
    (3, 1, 1, None, True, relu, 'rectified'),
    (6, 3, 1, max_pool, False, relu, 'pooled'),
    (6, 1, 1, max_pool, True, None, 'pooled'),
]


@pytest.mark.parametrize('features, kernel_size, strides, pool, has_shortcut, activation, form', CASES)
def test_conv_bn_is_its_layers_one_after_the_other(
    features, kernel_size, strides, pool, has_shortcut, activation, form, x64
):
    make = functools.partial(
        Layers, features=features, kernel_size=kernel_size, strides=strides, pool=pool, activation=activation
    )
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((3, 6, 6, CHANNELS)))
    initial = jax.eval_shape(lambda: make(False).init(jax.random.key(0), x.astype(jnp.float32), None, train=False))
    # Scales of both signs, and nothing at its initial value.
    variables = jax.tree.map(lambda leaf: jnp.asarray(0.5 + rng.random(leaf.shape)), initial)
    variables['params']['bn']['scale'] *= jnp.asarray([1.0, -1.0] * features)[:features]
    shape = jax.eval_shape(lambda: make(False).apply(variables, x, None, train=False)).shape
    shortcut = jnp.asarray(rng.standard_normal(shape)) if has_shortcut else None
    weights = jnp.asarray(rng.standard_normal(shape))

    def outcome(model, train):
        def loss(params, x, shortcut):
            y, moved = model.apply(variables | {'params': params}, x, shortcut, train, mutable=['batch_stats'])
            return jnp.sum(weights * y), (y, moved)

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(variables['params'], x, shortcut)

    for train in (True, False):
        found, expected = (jax.jit(outcome, static_argnums=(0, 1))(make(through), train) for through in (True, False))
        # Rounding in float64 of sums of up to 108 values.
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), found, expected)
    assert forms_of(make(True), variables, x, shortcut) == [form]


def forms_of(model, variables, *arguments):
    """Names of the methods by which a model calls its batch norms."""
    forms = []

    def listen(next_method, args, kwargs, context):
        if isinstance(context.module, BatchNorm) and context.method_name in FORMS:
            forms.append(context.method_name)
        return next_method(*args, **kwargs)

    with nn.intercept_methods(listen):
        jax.eval_shape(lambda: model.apply(variables, *arguments, train=False))
    return forms


def test_conv_bn_names_its_layers_and_starts_at_zero_where_it_should():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return conv_bn(x, 6, 1, names=('expand', 'expand_bn'), train=False, zero_scale=True, activation=None)

    y, variables = Block().init_with_output(jax.random.key(0), jnp.ones((1, 2, 2, CHANNELS)))
    assert jax.tree.map(jnp.shape, variables['params']) == {
        'expand': {'kernel': (1, 1, CHANNELS, 6)},
        'expand_bn': {'scale': (6,), 'bias': (6,)},
    }
    assert not y.any()


def test_dense_bn_is_its_layers_one_after_the_other():
    class Head(nn.Module):
        through_dense_bn: bool

        @nn.compact
        def __call__(self, x):
            if self.through_dense_bn:
                return dense_bn(x, 6, names=('dense', 'bn'), train=True, dtype=jnp.float32)
            return jnp.maximum(BatchNorm(name='bn')(dense(6, dtype=jnp.float32, name='dense')(x), train=True), 0)

    x = jnp.asarray(np.random.default_rng(0).standard_normal((16, CHANNELS)), jnp.float32)
    found, expected = (Head(through).init_with_output(jax.random.key(0), x) for through in (True, False))
    # The two forms round the norm of 16 rows in another order.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)
