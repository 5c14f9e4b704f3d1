"""Dilation in place of strides: the same parameters, and denser maps that hold the coarse ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.models.blocks import Stage, _mean_pool_2x2
from simclr_jax.models.resnet import ResNet
from support.finetuning import flat


def variables_of(model, shape):
    """Variables away from their initial values, in float64."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: model.init(key, jnp.zeros(shape, jnp.float32), train=False), jax.random.key(0))

    def draw(path, leaf):
        if path[-1].key in ('scale', 'var'):
            return 1 + 0.1 * rng.standard_normal(leaf.shape)
        return rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def maps_of(model, variables, images):
    apply = functools.partial(model.apply, train=False, maps=True)
    return jax.device_get(jax.jit(apply)(variables, images))[1]


@pytest.mark.parametrize(
    'depth, stem, output_stride, size',
    [
        (50, 'imagenet', 8, 37),
        (10, 'imagenet', 16, 34),
        (10, 'cifar', 1, 9),
    ],
)
def test_the_strided_map_lies_in_the_dilated_one(depth, stem, output_stride, size, x64):
    """Every n-th row and column, whatever the size: dilation only computes the places in between."""
    strided = ResNet(depth, width=1 / 32, stem=stem)
    dilated = strided.clone(output_stride=output_stride)
    images = np.random.default_rng(1).uniform(size=(2, size, size + 3, 3))
    variables = variables_of(strided, images.shape)
    coarse, dense = (maps_of(model, variables, images) for model in (strided, dilated))
    reached = strided.stem_stride
    for name, (strides, _) in zip(('stage1', 'stage2', 'stage3', 'stage4'), strided.geometry(), strict=True):
        reached *= strides
        step = max(reached // output_stride, 1)
        assert dense[name].shape[1] == -(-size // min(reached, output_stride))
        # Sums of up to a few hundred values in float64.
        np.testing.assert_allclose(dense[name][:, ::step, ::step], coarse[name], rtol=1e-9, atol=1e-9)


def test_selective_kernels_keep_their_parameters_and_the_resolution():
    """Also with squeeze-and-excitation. Their means are over all places, so that values differ."""

    def shapes(strides, dilations):
        stage = Stage(2, 8, strides, True, 0.0625, 0.25, jnp.float32, dilations=dilations)
        y, variables = jax.eval_shape(lambda key: stage.init_with_output(key, x, train=False), jax.random.key(0))
        return y.shape, {path: leaf.shape for path, leaf in flat(variables).items()}

    x = jnp.zeros((1, 9, 9, 16))
    (coarse, expected), (dense, found) = shapes(2, (1, 1)), shapes(1, (1, 2))
    assert found == expected
    assert (coarse[1:3], dense[1:3]) == ((5, 5), (9, 9))


def test_dilations_are_those_of_torchvision():
    """replace_stride_with_dilation: the first block of a stage has the dilation of the stage before."""
    assert ResNet(50, stem='imagenet', output_stride=8).geometry() == [
        (1, (1, 1)),
        (2, (1, 1)),
        (1, (1, 2)),
        (1, (2, 4)),
    ]
    assert ResNet(50, stem='imagenet', output_stride=16).geometry()[3] == (1, (1, 2))
    assert ResNet(50).geometry() == ResNet(50, output_stride=8).geometry()


@pytest.mark.parametrize('dilation', [1, 2])
def test_the_shortcuts_average_at_stride_1_holds_the_strided_one(dilation):
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 8, 12, 3)), jnp.float32)
    dense = _mean_pool_2x2(x, 1, dilation)
    assert dense.shape == x.shape
    expected = _mean_pool_2x2(x[:, ::dilation, ::dilation], 2)
    np.testing.assert_allclose(dense[:, :: 2 * dilation, :: 2 * dilation], expected, rtol=1e-6)


@pytest.mark.parametrize('stem, output_stride', [('imagenet', 2), ('imagenet', 12), ('cifar', 0)])
def test_strides_that_no_network_has(stem, output_stride):
    with pytest.raises(ValueError, match=f"output_stride={output_stride}: stem='{stem}' allows"):
        ResNet(18, stem=stem, output_stride=output_stride)
