"""Statistics of a batch, for batch normalisation: of arrays, and of products with weights that need not be made."""

import functools

import jax
import jax.numpy as jnp

from simclr_jax.ops.precision import at_least_float32

# The scope of operations whose count depends on how the statistics come about; what is counted of a network leaves
# them out.
STATISTICS_SCOPE = 'batch_statistics'

# (mean, biased variance), each [C].
Moments = tuple[jax.Array, jax.Array]


def moments(x: jax.Array) -> Moments:
    """Of `x` [..., C], in one pass over it."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    # Rounding can make the difference of two large numbers negative.
    variance = jnp.maximum(jnp.square(x).mean(axes) - jnp.square(mean), 0)
    return mean, variance


def moments_of_product(x: jax.Array, weights: jax.Array) -> Moments:
    """Of `x @ weights`, x being [..., C]."""
    with jax.named_scope(STATISTICS_SCOPE):
        mean = at_least_float32(x).mean(tuple(range(x.ndim - 1)))
        covariance = _second_moments(x) - mean[:, None] * mean
        multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        variance = jnp.maximum((weights * multiply(covariance, weights)).sum(0), 0)
        return multiply(mean, weights), variance


@jax.custom_vjp
def _second_moments(x: jax.Array) -> jax.Array:
    """E[x_i x_j] of `x` [..., C]: [C, C], in float32 at least."""
    # Products of bfloat16 numbers are exact in float32, those of float32 numbers are not in a TPU's default.
    precision = jax.lax.Precision.HIGHEST if x.dtype.itemsize >= 4 else None
    dtype = at_least_float32(x).dtype

    def with_itself(x: jax.Array) -> jax.Array:
        axes = tuple(range(x.ndim - 1))
        return jax.lax.dot_general(x, x, ((axes, axes), ((), ())), precision=precision, preferred_element_type=dtype)

    # A TPU keeps images in an order in which their rows [N, C] would be a copy; on a CPU the images would be one.
    sums = jax.lax.platform_dependent(x, cpu=lambda x: with_itself(x.reshape(-1, x.shape[-1])), default=with_itself)
    return sums * (x.shape[-1] / x.size)


def _second_moments_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    # In one product: the two of the transposed matrix products would each go over x.
    return (x @ ((gradient + gradient.T) * (x.shape[-1] / x.size)).astype(x.dtype),)


_second_moments.defvjp(lambda x: (_second_moments(x), x), _second_moments_backward)
