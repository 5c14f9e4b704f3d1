"""Convolutions agree with those of XLA in float64, in every formulation. Accelerators run those of XLA."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.ops import winograd
from simclr_jax.ops.convolution import convolve
from simclr_jax.ops.rectifier import normalize_and_rectify

# [N, H, C, D, kernel size, stride]. The first five are 3x3 convolutions of stride 1. In the first three, the tiles of
# Winograd are full, cut, and larger than the image. The fourth uses them only for the kernel's gradient. The fifth does
# not use them. Two strided 3x3 convolutions, two 1x1 convolutions and a stem follow.
SHAPES = [
    (4, 16, 64, 96, 3, 1),
    (2, 7, 80, 64, 3, 1),
    (3, 2, 64, 64, 3, 1),
    (2, 9, 8, 12, 3, 1),
    (2, 9, 3, 12, 3, 1),
    (2, 9, 16, 24, 3, 2),
    (2, 8, 16, 24, 3, 2),
    (2, 7, 16, 24, 1, 2),
    (2, 6, 16, 24, 1, 1),
    (2, 32, 3, 16, 7, 2),
]
WIDE, NARROW, STRIDED, POINTWISE = SHAPES[0], SHAPES[3], SHAPES[5], SHAPES[7]


def _padding(size: int):
    return (((size - 1) // 2, size // 2),) * 2


def _plain(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


def _drawn(shape):
    images, side, channels, features, size, stride = shape
    random = np.random.default_rng(0)
    x = random.normal(size=(images, side, side, channels))
    kernel = random.normal(size=(size, size, channels, features))
    dy = random.normal(size=(images, -(-side // stride), -(-side // stride), features))
    return x, kernel, dy


def _with_gradients(function, x, kernel, dy, shape):
    """The result, and the gradients of images and kernel."""

    @jax.jit
    def run(x, kernel, dy):
        y, pull_back = jax.vjp(lambda x, kernel: function(x, kernel, shape[5], _padding(shape[4])), x, kernel)
        return y, *pull_back(dy)

    return run(x, kernel, dy)


@pytest.mark.parametrize('shape', SHAPES)
def test_values_and_gradients_are_those_of_xla_in_float64(shape):
    x, kernel, dy = _drawn(shape)
    with jax.enable_x64(True):
        expected = _with_gradients(_plain, x, kernel, dy, shape)
    found = _with_gradients(convolve, *(jnp.asarray(array, jnp.float32) for array in (x, kernel, dy)), shape)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6 * np.abs(theirs).max())


# [N, H, C, kernel size, stride, dilation].
@pytest.mark.parametrize('shape', [(2, 9, 5, 3, 1, 1), (2, 9, 5, 5, 2, 1), (2, 8, 4, 5, 2, 1), (1, 7, 4, 3, 1, 2)])
def test_depthwise_convolutions_are_those_of_xla_in_float64(shape):
    images, side, channels, size, stride, dilation = shape
    random, padding = np.random.default_rng(0), ((dilation * (size // 2),) * 2,) * 2
    x, kernel = random.normal(size=(images, side, side, channels)), random.normal(size=(size, size, 1, channels))
    dy = random.normal(size=(images, -(-side // stride), -(-side // stride), channels))

    def run(x, kernel, dy):
        y, pull_back = jax.vjp(lambda *arrays: convolve(*arrays, stride, padding, dilation, channels), x, kernel)
        return y, *pull_back(dy)

    def lowered(platform, *arrays):
        return jax.jit(run).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()

    with jax.enable_x64(True):
        # In double precision it is XLA's own.
        assert _convolutions(lowered('cpu', x, kernel, dy)) == _convolutions(lowered('tpu', x, kernel, dy))
        expected = jax.jit(run)(x, kernel, dy)
    single = [jnp.asarray(array, jnp.float32) for array in (x, kernel, dy)]
    assert not _convolutions(lowered('cpu', *single))
    assert len(_convolutions(lowered('cuda', *single))) == 3
    for ours, theirs in zip(jax.jit(run)(*single), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6 * np.abs(theirs).max())


@pytest.mark.parametrize('shape', [WIDE, STRIDED, POINTWISE])
def test_double_precision_is_xlas_own(shape):
    with jax.enable_x64(True):
        found = _with_gradients(convolve, *_drawn(shape), shape)
        expected = _with_gradients(_plain, *_drawn(shape), shape)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_winograds_transforms_compute_every_convolution_exactly():
    """The bilinear identity behind the algorithm, on all pairs of unit vectors: y_i = sum_r w_r d_(i+r)."""
    exact = np.einsum('ij,jr,jk->irk', winograd.OUTPUT, winograd.KERNEL, winograd.IMAGE)
    expected = np.array([[[float(k == i + r) for k in range(6)] for r in range(3)] for i in range(4)])
    np.testing.assert_allclose(exact, expected, atol=1e-14)


def _lowered(function, shape, platform: str, wants_images: bool) -> str:
    x, kernel, dy = (jnp.asarray(array, jnp.float32) for array in _drawn(shape))

    def loss(x, kernel):
        return (dy * function(x, kernel, shape[5], _padding(shape[4]))).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1) if wants_images else 1))
    return gradients.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()


def _convolutions(text: str) -> list[str]:
    """The shapes of a program's convolutions."""
    return sorted(line.split('->', 1)[1] for line in text.splitlines() if 'stablehlo.convolution' in line)


@pytest.mark.parametrize('wants_images', [False, True])
@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
@pytest.mark.parametrize('shape', [WIDE, STRIDED, POINTWISE])
def test_accelerators_run_the_same_convolutions(shape, platform, wants_images):
    ours, plain = (_lowered(function, shape, platform, wants_images) for function in (convolve, _plain))
    assert 'dot_general' not in ours
    assert _convolutions(ours) == _convolutions(plain)


@pytest.mark.parametrize(('shape', 'left'), [(WIDE, 0), (POINTWISE, 0), (STRIDED, 1), (NARROW, 1)])
def test_cpus_run_products(shape, left):
    """Both gradients of wide and 1x1 convolutions are products. Others keep a convolution for the images' gradient."""
    text = _lowered(convolve, shape, 'cpu', wants_images=True)
    assert 'dot_general' in text
    assert len(_convolutions(text)) == left


@pytest.mark.parametrize(('size', 'padding'), [(1, ((1, 1), (1, 1))), (3, ((0, 0), (0, 0))), (3, ((1, 0), (0, 1)))])
def test_any_padding(size, padding):
    x, kernel, _ = (jnp.asarray(array, jnp.float32) for array in _drawn((2, 9, 64, 64, size, 1)))
    np.testing.assert_allclose(convolve(x, kernel, 1, padding), _plain(x, kernel, 1, padding), rtol=0, atol=1e-3)


@pytest.mark.parametrize('dilation, stride', [(2, 1), (4, 1), (3, 2)])
def test_a_dilated_convolution_is_one_with_zeros_between_the_taps(dilation, stride):
    """Values and gradients, of wide images whose undilated convolution would take another form."""
    x, kernel, _ = _drawn((2, 9, 64, 64, 3, 1))
    spread = np.zeros((2 * dilation + 1, 2 * dilation + 1, 64, 64))
    padding = ((dilation, dilation),) * 2

    def expected(kernel, x):
        return _plain(x, jnp.asarray(spread).at[::dilation, ::dilation].set(kernel), stride, padding)

    with jax.enable_x64(True):
        weights = np.random.default_rng(1).normal(size=jax.eval_shape(expected, kernel, x).shape)
        loss = jax.value_and_grad(lambda *arrays: (weights * expected(*arrays)).sum(), argnums=(0, 1))
        theirs = jax.jit(loss)(kernel, x)
    kernel, x, weights = (jnp.asarray(array, jnp.float32) for array in (kernel, x, weights))
    loss = jax.value_and_grad(
        lambda kernel, x: (weights * convolve(x, kernel, stride, padding, dilation)).sum(), argnums=(0, 1)
    )
    for ours, exact in zip(jax.tree.leaves(jax.jit(loss)(kernel, x)), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=2e-5, atol=5e-6 * np.abs(exact).max())


def test_nobody_computes_the_gradient_of_a_networks_input():
    with_images, without = (_lowered(convolve, STRIDED, 'tpu', wants_images) for wants_images in (True, False))
    assert with_images.count('stablehlo.convolution') == without.count('stablehlo.convolution') + 1


def test_on_cpus_a_norm_between_wide_convolutions_has_their_order():
    padding = _padding(3)

    def block(x, kernel):
        x = convolve(x, kernel, 1, padding)
        x, _ = normalize_and_rectify(x, jnp.ones(64), jnp.zeros(64), 1e-5)
        return convolve(x, kernel, 1, padding)

    x, kernel, _ = (jnp.asarray(array, jnp.float32) for array in _drawn((16, 8, 64, 64, 3, 1)))
    text = jax.jit(block).lower(x, kernel).compile().as_text()
    # One transpose of the images where they come in, and one where they go out.
    orders = re.findall(r' transpose\(.*?dimensions={(.*?)}', text)
    assert sorted(order for order in orders if order.endswith(',3')) == ['1,2,0,3', '2,0,1,3']


def test_on_cpus_patches_are_made_in_the_backward_pass():
    def loss(kernel, x):
        for _ in range(2):
            x = jnp.maximum(convolve(x, kernel, 2, _padding(3)), 0)
        return jnp.square(x).sum()

    x, kernel, _ = (jnp.asarray(array, jnp.float32) for array in _drawn((8, 16, 16, 16, 3, 2)))
    text = jax.jit(jax.grad(loss)).lower(kernel, x).compile().as_text()
    # Operations in the order in which they run. The first two convolutions are the forward pass.
    order = re.findall(r' (convolution|concatenate)\(', text[text.index('ENTRY') :])
    assert order[:2] == ['convolution', 'convolution']
    assert order.count('concatenate') == 2
