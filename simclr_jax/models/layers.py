"""What every part of the model is made of: convolution, dense layer and batch normalisation.

Parameters and moving statistics are float32. Each layer computes in the `dtype` it is given, but where its
input or its parameters are float64, so is the computation: double precision is never rounded by a default.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.convolution import convolve

BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5
# Of a standard normal that is cut off at -2 and 2.
DEVIATION_OF_CUT_NORMAL = 0.8796256610342398


def at_least_float32(x: jax.Array) -> jax.Array:
    """`x` in float32, or in float64 if it is that already: for sums, statistics and what leaves the model."""
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def _to_compute_dtype(*arrays: jax.Array | None, dtype: Any, inexact: bool = True) -> list[jax.Array | None]:
    """All arrays in `dtype`, or in float64 if one of them is; the signature is Flax' `promote_dtype`."""
    del inexact
    given = [array for array in arrays if array is not None]
    if any(array.dtype == jnp.dtype('float64') for array in given):
        dtype = jnp.float64
    return [array if array is None else jnp.asarray(array, dtype) for array in arrays]


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

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, ceil(H / strides), ceil(W / strides), D]."""
        size = self.kernel_size
        kernel = self.param('kernel', _fan_in_normal, (size, size, x.shape[-1], self.features), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = _to_compute_dtype(x, kernel, bias, dtype=self.dtype)
        padding = (size - 1) // 2, size // 2
        y = convolve(x, kernel, self.strides, (padding, padding))
        return y if bias is None else y + bias


def dense(
    features: int, *, dtype: Any, use_bias: bool = False, zero_init: bool = False, name: str | None = None
) -> nn.Dense:
    """A dense layer with weights from N(0, 0.01^2), or 0 with `zero_init`."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        kernel_init=nn.initializers.zeros if zero_init else _small_normal,
        dtype=dtype,
        promote_dtype=_to_compute_dtype,
        name=name,
    )


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe and Szegedy, arXiv 1502.03167).

    In training with the statistics of the batch, which move the moving ones: mean E[x], biased variance
    E[x^2] - E[x]^2. Under `jax.jit` on arrays sharded over a mesh these are means over the global batch, as
    SimCLR asks (section 2.2). Statistics are float32 at least; the result has the dtype of the input.

    Attributes:
        use_bias: whether an offset is learned.
        zero_scale: start with scale 0 instead of 1, which makes a residual block start as its shortcut.
        use_scale: whether a scale is learned.
        momentum: what the moving statistics keep of themselves in each training step, in [0, 1].
    """

    use_bias: bool = True
    zero_scale: bool = False
    use_scale: bool = True
    momentum: float = BATCH_NORM_MOMENTUM

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `x` [..., C]; with `train` the collection 'batch_stats' must be mutable."""
        shape = x.shape[-1:]
        moving_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32)
        moving_variance = self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32)

        wide = at_least_float32(x)
        if train:
            mean, variance = _batch_statistics(wide)
            if not self.is_initializing():
                moving_mean.value = self._moved(moving_mean.value, mean)
                moving_variance.value = self._moved(moving_variance.value, variance)
        else:
            mean, variance = moving_mean.value, moving_variance.value

        factor = jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)
        if self.use_scale:
            scale_init = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
            factor = self.param('scale', scale_init, shape, jnp.float32) * factor
        y = (wide - mean) * factor
        if self.use_bias:
            y = y + self.param('bias', nn.initializers.zeros, shape, jnp.float32)
        return y.astype(x.dtype)

    def _moved(self, moving: jax.Array, batch: jax.Array) -> jax.Array:
        return self.momentum * moving + (1 - self.momentum) * batch


def _batch_statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance [C] of `x` [..., C], in one pass over it."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    # Rounding can make the difference of two large numbers negative.
    variance = jnp.maximum(jnp.square(x).mean(axes) - jnp.square(mean), 0)
    return mean, variance
