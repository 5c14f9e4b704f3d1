"""Inverted residual blocks, and encoders that are rows of them: EfficientNet and MobileNetV3.

Every convolution is padded by (k - 1) // 2 on each side at every stride, as in torchvision.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.batch_norm import BatchNorm
from simclr_jax.models.blocks import SqueezeExcitation
from simclr_jax.models.encoders import check_frozen, dilated, prepared
from simclr_jax.models.layers import conv_bn, dense
from simclr_jax.ops.precision import at_least_float32
from simclr_jax.ops.rectifier import relu

Activation = Callable[[jax.Array], jax.Array]
# Activations by their name, so that a block is plain data.
ACTIVATIONS: dict[str, Activation] = {
    'relu': relu,
    'swish': nn.silu,
    'hard_swish': nn.hard_swish,
    'sigmoid': nn.sigmoid,
    'hard_sigmoid': nn.hard_sigmoid,
}


def divisible(channels: float) -> int:
    """Rounds a number of channels to a multiple of 8, at least 8, that is not below 90 % of it.

    Source: The rule of the MobileNets' published code, which torchvision has as well.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


@dataclasses.dataclass(frozen=True)
class Block:
    """An inverted residual block as plain data.

    Attributes:
        kernel_size: Rows and columns of the depthwise kernel.
        expanded: Channels of the depthwise convolution. Where they are those of the input, no 1x1 convolution precedes.
        features: Channels of the result.
        strides: Published stride of the depthwise convolution. A block of stride 2 has no shortcut, also where its
            convolution has stride 1.
        squeeze: Channels of the hidden layer of squeeze-and-excitation. 0: none.
        activation: Activation behind the first two convolutions, one of ACTIVATIONS.
        inner, gate: Activations of squeeze-and-excitation, behind its hidden layer and at its end.
    """

    kernel_size: int
    expanded: int
    features: int
    strides: int
    squeeze: int
    activation: str
    inner: str
    gate: str


class InvertedResidual(nn.Module):
    """An inverted residual block (arXiv 1801.04381): 1x1 expansion, depthwise convolution, gate, 1x1 projection.

    Attributes:
        block: Channels and activations.
        strides: Stride of the depthwise convolution, at most that of `block`.
        dilation: Distance in pixels between neighbouring taps of the depthwise convolution.
        drop: Probability in training that the block is left out for an image, in [0, 1). Only a block with a shortcut
            can be left out.
        dtype: Precision of the computation.
        norm: Makes the batch norms.
    """

    block: Block
    strides: int = 1
    dilation: int = 1
    drop: float = 0.0
    dtype: Any = jnp.float32
    norm: Any = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Applies the block: [N, H, W, C] -> [N, ceil(H / strides), ceil(W / strides), features]."""
        block, start = self.block, x
        layer = functools.partial(conv_bn, train=train, dtype=self.dtype, norm=self.norm)
        activation = ACTIVATIONS[block.activation]
        if block.expanded != x.shape[-1]:
            x = layer(x, block.expanded, 1, names=('expand', 'expand_bn'), activation=activation)
        x = layer(
            x,
            block.expanded,
            block.kernel_size,
            self.strides,
            dilation=self.dilation,
            groups=block.expanded,
            names=('depthwise', 'depthwise_bn'),
            activation=activation,
        )
        if block.squeeze:
            inner, gate = ACTIVATIONS[block.inner], ACTIVATIONS[block.gate]
            x = SqueezeExcitation(block.squeeze, self.dtype, inner, gate, name='se')(x)
        project = functools.partial(layer, x, block.features, 1, names=('project', 'project_bn'), activation=None)
        if block.strides > 1 or block.features != start.shape[-1]:
            return project()
        if self.drop == 0 or not train or self.is_initializing():
            return project(shortcut=start)
        return start + left_out(project(), self.drop, self.make_rng('dropout'))


def left_out(x: jax.Array, probability: float, key: jax.Array) -> jax.Array:
    """Stochastic depth (arXiv 1603.09382): makes all values of an image 0, or divides them by the chance to stay.

    Args:
        x: Values [N, ...] of images.
        probability: Probability that an image's values become 0, in [0, 1).
        key: Key of the draws.
    """
    stays = jax.random.bernoulli(key, 1 - probability, (len(x), *[1] * (x.ndim - 1)))
    return jnp.where(stays, x / jnp.asarray(1 - probability, x.dtype), jnp.zeros_like(x))


class InvertedStage(nn.Module):
    """Inverted residual blocks in a row. Only the first may change the resolution.

    Attributes:
        blocks: The blocks.
        drops: Probability of each block to be left out, see `InvertedResidual`.
        strides: Stride of the first block, at most that of its description.
        dilations: Dilation of the first block, and of all others.
        dtype: Precision of the computation.
        norm: Makes the batch norms.
        remat: Whether the backward pass recomputes the activations of each block from the block's input.
    """

    blocks: tuple[Block, ...]
    drops: tuple[float, ...]
    strides: int
    dilations: tuple[int, int]
    dtype: Any
    norm: Any = BatchNorm
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Applies the blocks: [N, H, W, C] -> [N, ceil(H / strides), ceil(W / strides), features of the last]."""
        make_block = nn.remat(InvertedResidual, static_argnums=(2,)) if self.remat else InvertedResidual
        for index, (block, drop) in enumerate(zip(self.blocks, self.drops, strict=True)):
            x = make_block(
                block=block,
                strides=self.strides if index == 0 else 1,
                dilation=self.dilations[0 if index == 0 else 1],
                drop=drop,
                dtype=self.dtype,
                norm=self.norm,
                name=f'block{index + 1}',
            )(x, train)
        return x


class ConvStem(nn.Module):
    """A 3x3 convolution with batch norm and activation: [N, H, W, C] -> [N, ceil(H / s), ceil(W / s), features].

    Attributes:
        features: Output channels.
        strides: Stride s.
        activation: One of ACTIVATIONS.
        dtype: Precision of the computation.
        norm: Makes the batch norm.
    """

    features: int
    strides: int
    activation: str
    dtype: Any
    norm: Any = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Applies the stem. `train` is that of the encoder."""
        layer = functools.partial(conv_bn, train=train, dtype=self.dtype, norm=self.norm)
        activation = ACTIVATIONS[self.activation]
        return layer(x, self.features, 3, self.strides, names=('conv', 'bn'), activation=activation)


class Top(nn.Module):
    """The last part: a 1x1 convolution, the mean over all places, and where there is one a dense layer.

    Attributes:
        features: Channels of the convolution.
        hidden: Width of the dense layer. 0: none, and the means are the representation.
        activation: Activation behind convolution and dense layer, one of ACTIVATIONS.
        dropout: Share of the representation's values that training makes 0, in [0, 1).
        dtype: Precision of the computation. The representation is at least float32.
        norm: Makes the batch norm.
    """

    features: int
    hidden: int
    activation: str
    dropout: float
    dtype: Any
    norm: Any = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Ends an encoder.

        Args:
            x: Feature maps [N, H, W, C].
            train: See the encoder.

        Returns:
            Feature maps [N, H, W, features], and representations [N, hidden or features].
        """
        layer = functools.partial(conv_bn, train=train, dtype=self.dtype, norm=self.norm)
        activation = ACTIVATIONS[self.activation]
        x = layer(x, self.features, 1, names=('conv', 'bn'), activation=activation)
        h = at_least_float32(x).mean((1, 2))
        if self.hidden:
            h = dense(self.hidden, dtype=self.dtype, use_bias=True, name='dense')(h)
            h = activation(at_least_float32(h))
        if self.dropout > 0 and train and not self.is_initializing():
            stays = jax.random.bernoulli(self.make_rng('dropout'), 1 - self.dropout, h.shape)
            h = jnp.where(stays, h / jnp.asarray(1 - self.dropout, h.dtype), jnp.zeros_like(h))
        return x, h


def drops_of(stages: Sequence[Sequence[Block]], last: float) -> list[tuple[float, ...]]:
    """The probability of each block to be left out: proportional to its index, and below `last` for the last block."""
    total, index, found = sum(map(len, stages)), 0, []
    for blocks in stages:
        found.append(tuple(last * (index + n) / total for n in range(len(blocks))))
        index += len(blocks)
    return found


def strides_of(stages: Sequence[Sequence[Block]], stem_stride: int) -> list[int]:
    """The stride of each stage.

    Args:
        stages: Blocks of each stage.
        stem_stride: Stride of the stem, 2 as published. With 1, for small images, the first stage that would reduce the
            resolution has stride 1 too.
    """
    strides = [blocks[0].strides for blocks in stages]
    if stem_stride == 1:
        strides[strides.index(2)] = 1
    return strides


def names_of(stages: Sequence[Any]) -> tuple[str, ...]:
    """Names of the parts of an encoder with these stages: ('stem', 'stage1', ..., 'top')."""
    return 'stem', *(f'stage{number + 1}' for number in range(len(stages))), 'top'


def encode(encoder: Any, x: jax.Array, *, hidden: int, train: bool, frozen: int, maps: bool) -> Any:
    """Makes the parts of an encoder, in whose compact method this is called, and applies them.

    Args:
        encoder: `EfficientNet` or `MobileNet`, which explain the attributes.
        x: Images [N, H, W, C].
        hidden: Width of the dense layer of the top. 0: none.
        train, frozen, maps: See `encoders.Encoder`.
    """
    norm = functools.partial(BatchNorm, momentum=encoder.batch_norm_momentum, epsilon=encoder.batch_norm_epsilon)
    common = {'dtype': encoder.dtype, 'norm': norm}
    parts = [ConvStem(encoder.stem_channels, encoder.stem_stride, encoder.activation, name='stem', **common)]
    parts += _stages(encoder, common)
    top = Top(encoder.top_channels, hidden, encoder.activation, encoder.dropout, name='top', **common)
    names = names_of(encoder.blocks())
    check_frozen(names, frozen)
    x, found = prepared(x, encoder.mean, encoder.std), {}
    for index, part in enumerate(parts):
        x = part(x, train=train and index >= frozen)
        if index < frozen:
            x = jax.lax.stop_gradient(x)
        found[names[index]] = x
    is_frozen = frozen == len(names)
    x, h = top(x, train=train and not is_frozen)
    if is_frozen:
        x, h = jax.lax.stop_gradient((x, h))
    found[names[-1]] = x
    return (h, found) if maps else h


def _stages(encoder: Any, common: dict[str, Any]) -> list[InvertedStage]:
    """The stages 'stage1', 'stage2', ... of an encoder."""
    stages = encoder.blocks()
    drops = drops_of(stages, encoder.stochastic_depth)
    geometry = dilated(strides_of(stages, encoder.stem_stride), encoder.stem_stride, encoder.output_stride)
    return [
        InvertedStage(
            blocks=blocks,
            drops=drops[index],
            strides=geometry[index][0],
            dilations=geometry[index][1],
            remat=index + 1 in encoder.remat,
            name=f'stage{index + 1}',
            **common,
        )
        for index, blocks in enumerate(stages)
    ]
