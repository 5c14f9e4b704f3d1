"""Statistics of a batch for batch normalisation: those of an array, and those of a product that is not computed."""

import jax
import jax.numpy as jnp

from simclr_jax.ops.precision import at_least_float32, precise_matmul

# Name scope of operations whose number depends on how the statistics are computed. Counts of a network's operations
# leave them out.
STATISTICS_SCOPE = 'batch_statistics'

# Mean and biased variance, [C] each.
Moments = tuple[jax.Array, jax.Array]


def moments(x: jax.Array) -> Moments:
    """Computes the mean and the biased variance of each channel, in one pass.

    Args:
        x: Array [..., C], at least float32.

    Returns:
        Mean [C] and variance [C], of the dtype of `x`.
    """
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    # Rounding can make the difference of two large numbers negative.
    variance = jnp.maximum(jnp.square(x).mean(axes) - jnp.square(mean), 0)
    return mean, variance


def moments_of_product(x: jax.Array, weights: jax.Array) -> Moments:
    """Computes the moments of `x @ weights` from the mean and the covariance of x, without the product.

    Args:
        x: Array [..., C].
        weights: Matrix [C, D], at least float32.

    Returns:
        Mean [D] and biased variance [D], at least float32.
    """
    with jax.named_scope(STATISTICS_SCOPE):
        mean = at_least_float32(x).mean(tuple(range(x.ndim - 1)))
        covariance = _second_moments(x) - mean[:, None] * mean
        variance = jnp.maximum((weights * precise_matmul(covariance, weights)).sum(0), 0)
        return precise_matmul(mean, weights), variance


@jax.custom_vjp
def _second_moments(x: jax.Array) -> jax.Array:
    """Second moments E[x_i x_j] [C, C] of `x` [..., C], at least float32."""
    # Products of bfloat16 numbers are exact in float32. By default, those of float32 numbers are not on a TPU.
    precision = jax.lax.Precision.HIGHEST if x.dtype.itemsize >= 4 else None
    dtype = at_least_float32(x).dtype

    def with_itself(x: jax.Array) -> jax.Array:
        axes = tuple(range(x.ndim - 1))
        return jax.lax.dot_general(x, x, ((axes, axes), ((), ())), precision=precision, preferred_element_type=dtype)

    # A TPU stores images in an order in which a reshape to rows [N, C] would copy them. On a CPU, the product over
    # several axes would copy them instead.
    sums = jax.lax.platform_dependent(x, cpu=lambda x: with_itself(x.reshape(-1, x.shape[-1])), default=with_itself)
    return sums * (x.shape[-1] / x.size)


def _second_moments_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    # One product goes over x once. The two transposes of the matrix product would go over it twice.
    return (x @ ((gradient + gradient.T) * (x.shape[-1] / x.size)).astype(x.dtype),)


_second_moments.defvjp(lambda x: (_second_moments(x), x), _second_moments_backward)
