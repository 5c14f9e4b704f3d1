"""Batch normalisation, in four forms with the same parameters and the same result.

| Form | What it computes | What it saves |
|---|---|---|
| `__call__` | The norm alone | Nothing: it reads and writes every value |
| `rectified` | ReLU behind the norm | Half of the values that are kept for the gradients |
| `folded` | The norm behind a 1x1 convolution, as a part of its kernel | A pass over the result |
| `pooled` | Max pooling behind the norm | The normalisation of all values but the maxima |

`layers.conv_bn` chooses between these forms.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.ops.batch_statistics import Moments, moments, moments_of_product
from simclr_jax.ops.precision import at_least_float32
from simclr_jax.ops.rectifier import normalize_and_rectify, relu

BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class _Parameters:
    """Parameters and moving statistics [C] of a norm. A parameter that is not learned is None."""

    scale: jax.Array | None
    bias: jax.Array | None
    moving_mean: nn.Variable
    moving_variance: nn.Variable


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe and Szegedy, arXiv 1502.03167).

    In training it normalises with the mean E[x] and the biased variance E[x^2] - E[x]^2 of the batch, and updates the
    moving statistics. Under `jax.jit` on arrays sharded over a mesh, these are means over the global batch, as SimCLR
    requires (arXiv 2002.05709, section 2.2). Statistics are at least float32. The result has the dtype of the input.
    With `train` the collection 'batch_stats' must be mutable.

    Attributes:
        use_bias: Whether an offset is learned.
        zero_scale: Whether the scale starts at 0 instead of 1. A residual block then starts as its shortcut.
        use_scale: Whether a scale is learned.
        momentum: Share of the old moving statistics that each training step keeps, in [0, 1].
        epsilon: Constant that is added to the variance.
    """

    use_bias: bool = True
    zero_scale: bool = False
    use_scale: bool = True
    momentum: float = BATCH_NORM_MOMENTUM
    epsilon: float = BATCH_NORM_EPSILON

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises an array.

        Args:
            x: Array [..., C].
            train: Whether to normalise with the statistics of the batch and update the moving ones. Otherwise the
                moving ones are used.

        Returns:
            Normalised array [..., C], of the dtype of `x`.
        """
        return self._apply(self._parameters(x.shape[-1]), x, x, train)

    def rectified(self, x: jax.Array, shortcut: jax.Array | None = None, *, train: bool) -> jax.Array:
        """Computes `relu(self(x) + shortcut)` and keeps less for the gradients.

        The norm must learn both a scale and an offset.

        Args:
            x: Array [..., C].
            shortcut: Array of the shape and dtype of `x`. None: no shortcut.
            train: See `__call__`.

        Returns:
            Array [..., C], of the dtype of `x`.
        """
        parameters = self._parameters(x.shape[-1])
        if not train:
            y = self._apply(parameters, x, x, train)
            return relu(y if shortcut is None else y + shortcut)
        assert parameters.scale is not None, 'this form needs use_scale'
        assert parameters.bias is not None, 'this form needs use_bias'
        y, batch = normalize_and_rectify(x, parameters.scale, parameters.bias, self.epsilon, shortcut)
        self._move(parameters, batch)
        return y

    def pooled(self, x: jax.Array, pool: Callable[[jax.Array], jax.Array], *, train: bool) -> jax.Array:
        """Computes `pool(self(x))` for max pooling, and normalises only the maxima.

        The norm is a rising function of each channel, or a falling one where the scale is negative. In those channels
        the largest normalised value is that of the smallest input. The norm must learn a scale.

        Args:
            x: Images [N, H, W, C].
            pool: Largest value of each channel in windows, [N, H, W, C] -> [N, H', W', C].
            train: See `__call__`.

        Returns:
            Images [N, H', W', C], of the dtype of `x`.
        """
        parameters = self._parameters(x.shape[-1])
        assert parameters.scale is not None, 'this form needs use_scale'
        # Placed before the pool, this product is fused with the convolution that makes x.
        sign = jnp.where(parameters.scale < 0, -1, 1).astype(x.dtype)
        x = x * sign
        return self._apply(parameters, pool(x) * sign, x * sign, train)

    def folded(self, x: jax.Array, weights: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Computes W and b such that `x @ W + b` is the normalised product `self(x @ weights)`.

        The statistics of the product follow from the mean m and the covariance S of x, so that the product itself is
        not needed. A channel with weights w has the mean m w and the variance w' S w. Where the product has many more
        channels than x, a pass over the product costs more than S.

        Args:
            x: Array [..., C].
            weights: Matrix [C, D].
            train: See `__call__`.

        Returns:
            Weights W [C, D] and offset b [D], at least float32. The caller rounds them once, for its product.
        """
        weights = weights.astype(at_least_float32(x).dtype)
        parameters = self._parameters(weights.shape[-1])
        mean, factor = self._normalization(parameters, lambda: moments_of_product(x, weights), train)
        offset = -mean * factor
        return weights * factor, offset if parameters.bias is None else offset + parameters.bias

    @nn.compact
    def _parameters(self, channels: int) -> _Parameters:
        shape = (channels,)
        scale_init = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
        return _Parameters(
            scale=self.param('scale', scale_init, shape, jnp.float32) if self.use_scale else None,
            bias=self.param('bias', nn.initializers.zeros, shape, jnp.float32) if self.use_bias else None,
            moving_mean=self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32),
            moving_variance=self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32),
        )

    def _apply(self, parameters: _Parameters, x: jax.Array, population: jax.Array, train: bool) -> jax.Array:
        """Normalises `x`, in training with the statistics of `population`."""
        mean, factor = self._normalization(parameters, lambda: moments(at_least_float32(population)), train)
        y = (at_least_float32(x) - mean) * factor
        return (y if parameters.bias is None else y + parameters.bias).astype(x.dtype)

    def _normalization(self, parameters: _Parameters, measure: Callable[[], Moments], train: bool) -> Moments:
        """Mean [C] to subtract and factor [C] to multiply with. In training it updates the moving statistics."""
        if train:
            mean, variance = measure()
            self._move(parameters, (mean, variance))
        else:
            mean, variance = parameters.moving_mean.value, parameters.moving_variance.value
        factor = jax.lax.rsqrt(variance + self.epsilon)
        return mean, factor if parameters.scale is None else parameters.scale * factor

    def _move(self, parameters: _Parameters, batch: Moments) -> None:
        """Moves the moving statistics towards those of the batch."""
        if self.is_initializing():
            return
        for moving, value in zip((parameters.moving_mean, parameters.moving_variance), batch, strict=True):
            moving.value = self.momentum * moving.value + (1 - self.momentum) * value
