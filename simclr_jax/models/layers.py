"""Building blocks of the networks: convolutions and dense layers, alone or with norm and activation.

`conv_bn` is the one door to the fused forms of convolution, batch norm, activation and shortcut.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.batch_norm import BatchNorm
from simclr_jax.ops.convolution import convolve
from simclr_jax.ops.precision import at_least_float32, to_compute_dtype
from simclr_jax.ops.rectifier import relu


def conv_bn(
    x: jax.Array,
    features: int,
    kernel_size: int,
    strides: int = 1,
    *,
    names: tuple[str, str],
    train: bool,
    dilation: int = 1,
    groups: int = 1,
    dtype: Any = jnp.float32,
    norm: Callable[..., BatchNorm] = BatchNorm,
    zero_scale: bool = False,
    max_pool: Callable[[jax.Array], jax.Array] | None = None,
    shortcut: jax.Array | None = None,
    activation: Callable[[jax.Array], jax.Array] | None = relu,
) -> jax.Array:
    """Applies convolution, batch norm, max pooling, shortcut and activation, in the cheapest of the equivalent forms.

    Computes `activation(max_pool(norm(conv(x))) + shortcut)`. A rising activation such as ReLU commutes with max
    pooling, so that their order does not matter. Call this function in a compact method: the convolution and the norm
    become children of that module.

    Args:
        x: Images [N, H, W, C].
        features: Output channels D.
        kernel_size: Rows and columns of the kernel.
        strides: Stride of rows and columns.
        names: Names of the convolution and of the norm, under which their parameters lie.
        train: Whether to normalise with the statistics of the batch and update the moving ones. Otherwise the moving
            ones are used.
        dilation: Distance in pixels between neighbouring taps of the kernel.
        groups: Number of groups of channels that are convolved by themselves. It divides C and D.
        dtype: Precision of the computation.
        norm: Makes the batch norm from `zero_scale` and `name`.
        zero_scale: Whether the norm starts with scale 0.
        max_pool: Largest value of each channel in windows, [N, H', W', D] -> [N, H'', W'', D]. None: no pooling.
        shortcut: Images of the result's shape and dtype. None: no shortcut.
        activation: Function of each value. None: no activation.

    Returns:
        Images [N, ceil(H / strides), ceil(W / strides), D], or smaller by `max_pool`.
    """
    conv = Conv(features, kernel_size, strides, dilation=dilation, groups=groups, name=names[0], dtype=dtype)
    batch_norm = norm(zero_scale=zero_scale, name=names[1])
    # A norm that is part of a 1x1 kernel saves a pass over the result. It needs the covariance [C, C] of x, which
    # costs more than that pass where the result has fewer channels than x.
    can_fold = kernel_size == 1 and groups == 1 and features >= x.shape[-1]
    if max_pool is not None:
        y = batch_norm.pooled(conv(x), max_pool, train=train)
    elif can_fold and (activation is not relu or shortcut is not None):
        y = conv.normalized(x, batch_norm, train=train)
    elif activation is relu:
        return batch_norm.rectified(conv(x), shortcut, train=train)
    else:
        y = batch_norm(conv(x), train=train)
    if shortcut is not None:
        y = y + shortcut
    return y if activation is None else activation(y)


def dense_bn(x: jax.Array, features: int, *, names: tuple[str, str], train: bool, dtype: Any) -> jax.Array:
    """Applies a dense layer without bias, batch norm and ReLU, in the cheapest of the equivalent forms.

    Call this function in a compact method, like `conv_bn`.

    Args:
        x: Rows [N, C].
        features: Output width D.
        names: Names of the dense layer and of the norm, under which their parameters lie.
        train: Whether to normalise with the statistics of the batch and update the moving ones. Otherwise the moving
            ones are used.
        dtype: Precision of the computation.

    Returns:
        Rows [N, D].
    """
    return BatchNorm(name=names[1]).rectified(dense(features, dtype=dtype, name=names[0])(x), train=train)


# Standard deviation of a standard normal distribution that is cut off at -2 and 2.
DEVIATION_OF_CUT_NORMAL = 0.8796256610342398


# Kernels are drawn as vectors: XLA takes four times longer to compile a draw in four dimensions.
def _fan_in_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Truncated normal of variance 1 / fan-in, Keras's VarianceScaling with scale 1.

    It is cut off at two standard deviations of the normal distribution before the cut.
    """
    deviation = math.sqrt(1 / math.prod(shape[:-1])) / DEVIATION_OF_CUT_NORMAL
    return deviation * jax.random.truncated_normal(key, -2, 2, (math.prod(shape),), dtype).reshape(shape)


def _small_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return 0.01 * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


class Conv(nn.Module):
    """Square convolution whose padding does not depend on the size of the image.

    At every stride, dilation * (kernel_size - 1) rows and columns of zeros surround the image, the smaller half before
    it. The padding 'SAME' at stride 2 would shift the image with the parity of its size.

    Attributes:
        features: Output channels D.
        kernel_size: Rows and columns of the kernel.
        strides: Stride of rows and columns.
        use_bias: Whether an offset is learned.
        dilation: Distance in pixels between neighbouring taps of the kernel.
        dtype: Precision of the computation.
        groups: Number of groups of channels that are convolved by themselves. It divides C and D.
    """

    features: int
    kernel_size: int
    strides: int = 1
    use_bias: bool = False
    dilation: int = 1
    dtype: Any = jnp.float32
    groups: int = 1

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves images: [N, H, W, C] -> [N, ceil(H / strides), ceil(W / strides), D]."""
        reach = self.dilation * (self.kernel_size - 1)
        kernel, bias = self._parameters(x.shape[-1])
        x, kernel, bias = to_compute_dtype(x, kernel, bias, dtype=self.dtype)
        padding = reach // 2, (reach + 1) // 2
        y = convolve(x, kernel, self.strides, (padding, padding), self.dilation, self.groups)
        return y if bias is None else y + bias

    def normalized(self, x: jax.Array, norm: BatchNorm, *, train: bool) -> jax.Array:
        """Computes `norm(self(x), train=train)` with the norm as a part of the kernel, see `BatchNorm.folded`.

        The kernel must be 1x1, without bias and groups.

        Args:
            x: Images [N, H, W, C].
            norm: Batch norm of D channels.
            train: See `BatchNorm.__call__`.

        Returns:
            Images [N, ceil(H / strides), ceil(W / strides), D].
        """
        kernel, _ = self._parameters(x.shape[-1])
        x, _ = to_compute_dtype(x[:, :: self.strides, :: self.strides], kernel, dtype=self.dtype)
        weights, offset = norm.folded(x, kernel[0, 0], train=train)
        y = convolve(x, weights.astype(x.dtype)[None, None], 1, ((0, 0), (0, 0)))
        return (at_least_float32(y) + offset).astype(y.dtype)

    @nn.compact
    def _parameters(self, channels: int) -> tuple[jax.Array, jax.Array | None]:
        shape = (self.kernel_size, self.kernel_size, channels // self.groups, self.features)
        kernel = self.param('kernel', _fan_in_normal, shape, jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, shape[-1:], jnp.float32) if self.use_bias else None
        return kernel, bias


def dense(
    features: int, *, dtype: Any, use_bias: bool = False, zero_init: bool = False, name: str | None = None
) -> nn.Dense:
    """Makes a dense layer whose weights start as draws from N(0, 0.01^2).

    Args:
        features: Output width.
        dtype: Precision of the computation.
        use_bias: Whether an offset is learned. It starts at 0.
        zero_init: Whether the weights start at 0 instead.
        name: Name of the layer in its parent.

    Returns:
        The layer, which maps [..., C] to [..., features].
    """
    return nn.Dense(
        features,
        use_bias=use_bias,
        kernel_init=nn.initializers.zeros if zero_init else _small_normal,
        dtype=dtype,
        promote_dtype=to_compute_dtype,
        name=name,
    )
