"""Operations counted in traced programs whose number follows from the shapes."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from simclr_jax.ops import convolution
from simclr_jax.planning.flops import count_flops
from simclr_jax.sharding import make_mesh


def flops(function, *shapes):
    return count_flops(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)).jaxpr)


def convolve(images, kernel, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        'VALID',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )


def product(a, b):
    return a @ b


@pytest.mark.parametrize(
    'function, shapes, expected',
    [
        (product, [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
        (functools.partial(jnp.einsum, 'bij,bjk->bik'), [(2, 3, 5), (2, 5, 7)], 2 * 2 * 3 * 5 * 7),
        # 6 x 6 places of 3 x 3 x 4 products for each of 8 channels; a group sees a quarter of the channels.
        (convolve, [(2, 8, 8, 4), (3, 3, 4, 8)], 2 * 2 * 36 * 9 * 4 * 8),
        (functools.partial(convolve, groups=4), [(2, 8, 8, 4), (3, 3, 1, 8)], 2 * 2 * 36 * 9 * 8),
        (jnp.add, [(3, 5), (3, 5)], 0),
    ],
)
def test_of_operations(function, shapes, expected):
    assert flops(function, *shapes) == expected


@pytest.mark.parametrize('function, shapes', [(product, [(4, 6), (6, 2)]), (convolve, [(2, 8, 8, 4), (1, 1, 4, 8)])])
def test_a_gradient_costs_twice_the_function(function, shapes):
    # Inputs' and weights' gradients are a product each of the same size.
    gradient = jax.grad(lambda a, b: jnp.sum(function(a, b) ** 2), argnums=(0, 1))
    assert flops(gradient, *shapes) == 3 * flops(function, *shapes)


def test_the_zeros_of_a_stride_are_not_counted():
    # 8 x 8 places with kernel and stride 2: what the gradient adds between rows is no work.
    function = functools.partial(convolve, stride=2)
    shapes = [(2, 16, 16, 4), (2, 2, 4, 8)]
    gradient = jax.grad(lambda a, b: jnp.sum(function(a, b) ** 2))
    assert flops(gradient, *shapes) == pytest.approx(2 * flops(function, *shapes), rel=0.3)


@pytest.mark.parametrize('side, channels', [(32, 64), (64, 8), (96, 64)])
def test_a_convolution_counts_the_same_however_a_cpu_computes_it(side, channels):
    layer = functools.partial(convolution.convolve, stride=1, padding=((1, 1), (1, 1)))
    shapes = [(2, side, side, channels), (3, 3, channels, channels)]
    assert flops(layer, *shapes) == 2 * 2 * side**2 * 9 * channels**2
    gradient = jax.grad(lambda a, b: jnp.sum(layer(a, b) ** 2), argnums=(0, 1))
    assert flops(gradient, *shapes) == 3 * flops(layer, *shapes)


def test_a_depthwise_convolution_counts_one_channel_per_result():
    layer = functools.partial(convolution.convolve, stride=2, padding=((2, 2), (2, 2)), groups=6)
    shapes = [(2, 16, 16, 6), (5, 5, 1, 6)]
    assert flops(layer, *shapes) == 2 * 2 * 8**2 * 25 * 6
    gradient = jax.grad(lambda a, b: jnp.sum(layer(a, b) ** 2), argnums=(0, 1))
    # What the gradient of the images adds between the rows of a stride does not count.
    assert flops(gradient, *shapes) == pytest.approx(3 * flops(layer, *shapes), rel=0.3)


def test_loops_conditions_and_recomputation():
    def loop(a, b):
        return jax.lax.scan(lambda carry, _: (carry @ b, None), a, length=7)[0]

    def condition(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b @ b, lambda: a @ b)

    once = 2 * 3 * 5 * 5
    assert flops(loop, (3, 5), (5, 5)) == 7 * once
    assert flops(condition, (3, 5), (5, 5)) == 2 * once
    # The chain (ab)b without and with keeping ab: forward, then two gradients of each product.
    chain = lambda a, b: jnp.sum(jnp.sin(jnp.sin(a @ b) @ b))  # noqa: E731
    kept = flops(jax.grad(chain), (3, 5), (5, 5))
    again = flops(jax.grad(jax.checkpoint(chain)), (3, 5), (5, 5))
    assert again > kept


def test_all_devices_of_a_shard_map():
    mesh = make_mesh()
    rows = PartitionSpec(mesh.axis_names[0])
    function = jax.shard_map(product, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)
    assert flops(function, (16, 5), (5, 7)) == 2 * 16 * 5 * 7
