"""Batch normalisation, in four forms with the same parameters and the same result.

Alone it reads and writes every value. With the rectifier behind it, it keeps half as much for the gradients
(`rectified`). Behind a 1x1 convolution to more channels it can become part of the kernel (`folded`), and before max
pooling only the maxima need it (`pooled`).
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
    """Of C channels; what is not learned is None."""

    scale: jax.Array | None
    bias: jax.Array | None
    moving_mean: nn.Variable
    moving_variance: nn.Variable


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe and Szegedy, arXiv 1502.03167).

    In training with the statistics of the batch, which move the moving ones: mean E[x], biased variance
    E[x^2] - E[x]^2. Under `jax.jit` on arrays sharded over a mesh these are means over the global batch, as
    SimCLR asks (section 2.2). Statistics are float32 at least; the result has the dtype of the input. With `train`
    the collection 'batch_stats' must be mutable.

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

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `x` [..., C]."""
        return self._apply(self._parameters(x.shape[-1]), x, x, train)

    def rectified(self, x: jax.Array, shortcut: jax.Array | None = None, *, train: bool) -> jax.Array:
        """`relu(self(x) + shortcut)`, or without the shortcut, for a norm that learns both scale and offset.

        Args:
            x: [..., C].
            shortcut: of the same shape and dtype.
            train: as ever.

        Returns:
            [..., C].
        """
        parameters = self._parameters(x.shape[-1])
        if not train:
            y = self._apply(parameters, x, x, train)
            return relu(y if shortcut is None else y + shortcut)
        y, batch = normalize_and_rectify(x, parameters.scale, parameters.bias, BATCH_NORM_EPSILON, shortcut)
        self._move(parameters, batch)
        return y

    def pooled(self, x: jax.Array, pool: Callable[[jax.Array], jax.Array], *, train: bool) -> jax.Array:
        """`pool(self(x))` for a pool that takes the largest value of each channel in windows: normalises only these.

        A channel is normalised by a rising function, or by a falling one where its scale is negative.

        Args:
            x: [N, H, W, C].
            pool: [N, H, W, C] -> [N, H', W', C].
            train: as ever.

        Returns:
            [N, H', W', C].
        """
        parameters = self._parameters(x.shape[-1])
        # Multiplied here and not behind the pool, it is a part of the convolution that makes x.
        sign = jnp.where(parameters.scale < 0, -1, 1).astype(x.dtype)
        x = x * sign
        return self._apply(parameters, pool(x) * sign, x * sign, train)

    def folded(self, x: jax.Array, weights: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """What makes `x @ weights` the normalised product `self(x @ weights)`, without that being made before.

        The statistics of the product follow from the mean m and the covariance S of x: of a channel with weights w,
        the mean is m w and the variance w' S w. With many more channels in the product than in x, a pass over it costs
        more than S.

        Args:
            x: [..., C].
            weights: [C, D].
            train: as ever.

        Returns:
            Weights [C, D] and offset [D], in float32 at least: to be rounded once, for the product.
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
        """(mean, factor): what to subtract, and what to multiply the difference with. In training, moves the moving."""
        if train:
            mean, variance = measure()
            self._move(parameters, (mean, variance))
        else:
            mean, variance = parameters.moving_mean.value, parameters.moving_variance.value
        factor = jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)
        return mean, factor if parameters.scale is None else parameters.scale * factor

    def _move(self, parameters: _Parameters, batch: Moments) -> None:
        """The moving statistics, towards those of the batch."""
        if self.is_initializing():
            return
        for moving, value in zip((parameters.moving_mean, parameters.moving_variance), batch, strict=True):
            moving.value = self.momentum * moving.value + (1 - self.momentum) * value
