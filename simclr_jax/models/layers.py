"""What every part of the model is made of: convolution and dense layer; with normalization.py and rectifier.py."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.batch_norm import BatchNorm
from simclr_jax.ops.convolution import convolve
from simclr_jax.ops.precision import at_least_float32, to_compute_dtype

# Of a standard normal that is cut off at -2 and 2.
DEVIATION_OF_CUT_NORMAL = 0.8796256610342398


# The numbers of a kernel are drawn as a vector: drawn in four dimensions, XLA takes four times longer to compile them.
def _fan_in_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Normal of variance 1 / fan-in, cut off at two deviations of the uncut one: Keras' default, scale 1."""
    deviation = math.sqrt(1 / math.prod(shape[:-1])) / DEVIATION_OF_CUT_NORMAL
    return deviation * jax.random.truncated_normal(key, -2, 2, (math.prod(shape),), dtype).reshape(shape)


def _small_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return 0.01 * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


class Conv(nn.Module):
    """A square convolution whose padding does not depend on the size of the image.

    The kernel_size - 1 rows and columns of padding are laid around the image, the smaller half before it, at
    every stride; 'SAME' with stride 2 would shift with the parity of the size.

    Attributes:
        features: D, output channels.
        kernel_size: of rows and columns.
        strides: of rows and columns.
        use_bias: whether an offset is learned.
        dtype: of the computation.
    """

    features: int
    kernel_size: int
    strides: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, ceil(H / strides), ceil(W / strides), D]."""
        size = self.kernel_size
        kernel, bias = self._parameters(x.shape[-1])
        x, kernel, bias = to_compute_dtype(x, kernel, bias, dtype=self.dtype)
        padding = (size - 1) // 2, size // 2
        y = convolve(x, kernel, self.strides, (padding, padding))
        return y if bias is None else y + bias

    def normalized(self, x: jax.Array, norm: BatchNorm, *, train: bool) -> jax.Array:
        """`norm(self(x), train=train)`, for a 1x1 convolution without bias: see `BatchNorm.folded`."""
        kernel, _ = self._parameters(x.shape[-1])
        x, _ = to_compute_dtype(x[:, :: self.strides, :: self.strides], kernel, dtype=self.dtype)
        weights, offset = norm.folded(x, kernel[0, 0], train=train)
        y = convolve(x, weights.astype(x.dtype)[None, None], 1, ((0, 0), (0, 0)))
        return (at_least_float32(y) + offset).astype(y.dtype)

    @nn.compact
    def _parameters(self, channels: int) -> tuple[jax.Array, jax.Array | None]:
        shape = (self.kernel_size, self.kernel_size, channels, self.features)
        kernel = self.param('kernel', _fan_in_normal, shape, jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, shape[-1:], jnp.float32) if self.use_bias else None
        return kernel, bias


def dense(
    features: int, *, dtype: Any, use_bias: bool = False, zero_init: bool = False, name: str | None = None
) -> nn.Dense:
    """A dense layer with weights from N(0, 0.01^2), or 0 with `zero_init`."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        kernel_init=nn.initializers.zeros if zero_init else _small_normal,
        dtype=dtype,
        promote_dtype=to_compute_dtype,
        name=name,
    )
