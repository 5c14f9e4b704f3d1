"""Residual blocks (arXiv 1512.03385), with selective kernels or squeeze-and-excitation, and stages of them."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.batch_norm import BatchNorm
from simclr_jax.models.layers import Conv, conv_bn, relu


class SelectiveKernel(nn.Module):
    """Two streams of a 3x3 convolution, mixed by attention to the mean of their sum (arXiv 1903.06586).

    Both streams have the same receptive field, as in SimCLRv2, and come from one convolution.

    Attributes:
        features: Channels of a stream and of the result.
        strides: Stride of the convolution.
        ratio: Share of `features` in the hidden layer of the attention, which has at least 32 channels.
        dtype: Precision of the computation.
        norm: Makes the batch norms.
        dilation: Distance in pixels between neighbouring taps of the convolution.
    """

    features: int
    strides: int
    ratio: float
    dtype: Any
    norm: Any = BatchNorm
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Mixes the streams: [N, H, W, C] -> [N, ceil(H / strides), ceil(W / strides), features]."""
        layer = functools.partial(conv_bn, train=train, dtype=self.dtype, norm=self.norm)
        x = layer(x, 2 * self.features, 3, self.strides, dilation=self.dilation, names=('conv', 'bn'))
        streams = x.reshape(*x.shape[:-1], 2, self.features)

        context = streams.sum(3).mean((1, 2), keepdims=True)
        context = layer(context, max(int(self.features * self.ratio), 32), 1, names=('reduce', 'reduce_bn'))
        context = Conv(2 * self.features, 1, name='expand', dtype=self.dtype)(context)
        attention = nn.softmax(context.reshape(-1, 1, 1, 2, self.features), axis=3)
        return (attention * streams).sum(3)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate that is computed from the means of all channels (arXiv 1709.01507).

    Attributes:
        hidden: Channels of the hidden layer.
        dtype: Precision of the computation.
        activation: Function behind the hidden layer.
        gate: Function of each value that gives the gate, in [0, 1].
    """

    hidden: int
    dtype: Any
    activation: Callable[[jax.Array], jax.Array] = relu
    gate: Callable[[jax.Array], jax.Array] = nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scales the channels of feature maps [N, H, W, C]."""
        gate = x.mean((1, 2), keepdims=True)
        gate = self.activation(Conv(self.hidden, 1, name='reduce', dtype=self.dtype, use_bias=True)(gate))
        gate = Conv(x.shape[-1], 1, name='expand', dtype=self.dtype, use_bias=True)(gate)
        return x * self.gate(gate)


def _mean_pool_2x2(x: jax.Array, strides: int, dilation: int = 1) -> jax.Array:
    """Averages over windows of 2x2 pixels at a distance of `dilation`, which may reach that far beyond the image.

    At stride 1 that border does not count: the mean is over the pixels of the window that exist. At stride 2 the
    windows reach it only where the size is odd, and there it counts as zeros.
    """
    if strides == 1:
        for axis in (1, 2):
            # A pixel whose partner does not exist is counted twice, which leaves the mean.
            distance = min(dilation, x.shape[axis])
            inner = jax.lax.slice_in_dim(x, distance, None, axis=axis)
            last = jax.lax.slice_in_dim(x, x.shape[axis] - distance, None, axis=axis)
            x = x + jnp.concatenate([inner, last], axis)
        return x / 4
    x = jnp.pad(x, ((0, 0), (0, dilation), (0, dilation), (0, 0)))
    x = x[:, :-dilation:strides] + x[:, dilation::strides]
    x = x[:, :, :-dilation:strides] + x[:, :, dilation::strides]
    return x / 4


class ResidualBlock(nn.Module):
    """A residual block (arXiv 1512.03385, figure 5): two 3x3 convolutions, or the bottleneck 1x1, 3x3, 1x1.

    Attributes:
        filters: Channels of the 3x3 convolutions.
        strides: Stride of the first 3x3 convolution and of the shortcut.
        bottleneck: Whether the block is a bottleneck, which ends four times as wide.
        project: Whether the shortcut is a convolution. Otherwise it is the identity.
        sk_ratio: Share of `filters` in the attention of selective kernels, bottlenecks only. 0: none.
        se_ratio: Share of `filters` in the hidden layer of squeeze-and-excitation. 0: none.
        dtype: Precision of the computation.
        norm: Makes the batch norms.
        dilations: Dilation of the first 3x3 convolution and of the shortcut's average, and of the second convolution.
    """

    filters: int
    strides: int
    bottleneck: bool
    project: bool
    sk_ratio: float
    se_ratio: float
    dtype: Any
    norm: Any = BatchNorm
    dilations: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Applies the block: [N, H, W, C] -> [N, ceil(H / strides), ceil(W / strides), out_features]."""
        layer = functools.partial(conv_bn, train=train, dtype=self.dtype, norm=self.norm)
        shortcut = self._shortcut(layer, x) if self.project else x
        first, second = self.dilations
        if self.bottleneck:
            x = layer(x, self.filters, 1, names=('conv1', 'bn1'))
            if self.sk_ratio > 0:
                settings = self.filters, self.strides, self.sk_ratio, self.dtype, self.norm, first
                x = SelectiveKernel(*settings, name='sk')(x, train=train)
            else:
                x = layer(x, self.filters, 3, self.strides, dilation=first, names=('conv2', 'bn2'))
            last = functools.partial(layer, x, self.out_features, 1, names=('conv3', 'bn3'), zero_scale=True)
        else:
            x = layer(x, self.filters, 3, self.strides, dilation=first, names=('conv1', 'bn1'))
            layer = functools.partial(layer, dilation=second)
            last = functools.partial(layer, x, self.out_features, 3, names=('conv2', 'bn2'), zero_scale=True)
        if self.se_ratio == 0:
            return last(shortcut=shortcut)
        excitation = SqueezeExcitation(max(1, int(self.filters * self.se_ratio)), self.dtype, name='se')
        return relu(excitation(last(activation=None)) + shortcut)

    @property
    def out_features(self) -> int:
        """Channels of the block's result."""
        return self.filters * (4 if self.bottleneck else 1)

    def _shortcut(self, layer: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
        strides = self.strides
        if self.sk_ratio > 0:
            # ResNet-D averages first, so that the 1x1 convolution does not skip three quarters of its input.
            x, strides = _mean_pool_2x2(x, strides, self.dilations[0]), 1
        names = 'shortcut_conv', 'shortcut_bn'
        return layer(x, self.out_features, 1, strides, names=names, activation=None)


class Stage(nn.Module):
    """Residual blocks of one width. The first block changes the resolution and projects its shortcut.

    Attributes:
        blocks: Number of blocks.
        filters, strides, bottleneck, sk_ratio, se_ratio, dtype, norm: See `ResidualBlock`. The stride is that of the
            first block.
        remat: Whether the backward pass recomputes the activations of each block from the block's input.
        dilations: Dilation of the first block's first 3x3 convolution, and of all others.
        project: Whether the shortcut of the first block is a convolution.
    """

    blocks: int
    filters: int
    strides: int
    bottleneck: bool
    sk_ratio: float
    se_ratio: float
    dtype: Any
    norm: Any = BatchNorm
    remat: bool = False
    dilations: tuple[int, int] = (1, 1)
    project: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Applies the blocks: [N, H, W, C] -> [N, ceil(H / strides), ceil(W / strides), channels of a block]."""
        _, others = self.dilations
        make_block = nn.remat(ResidualBlock, static_argnums=(2,)) if self.remat else ResidualBlock
        for index in range(self.blocks):
            block = make_block(
                filters=self.filters,
                strides=self.strides if index == 0 else 1,
                bottleneck=self.bottleneck,
                project=self.project and index == 0,
                sk_ratio=self.sk_ratio,
                se_ratio=self.se_ratio,
                dtype=self.dtype,
                norm=self.norm,
                dilations=self.dilations if index == 0 else (others, others),
                name=f'block{index + 1}',
            )
            x = block(x, train)
        return x
