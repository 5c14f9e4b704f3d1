"""Precision of a computation: what runs in a model's `dtype`, and what runs at least in float32.

Parameters and moving statistics are float32. A layer computes in the `dtype` that it is given. It computes in float64
if its input or one of its parameters is float64, so that no default ever rounds double precision.
"""

from typing import Any

import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
    """Casts an array to float32, for sums, statistics, losses and a model's outputs.

    Args:
        x: Array of any shape and real type.

    Returns:
        The values in float64 if `x` is float64, otherwise in float32.
    """
    return x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def precise_matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes the matrix product `a @ b` without rounding its factors.

    By default a TPU rounds float32 factors to bfloat16, which leaves 8 significant bits.

    Args:
        a: Left factor [..., N, K] or [K].
        b: Right factor [..., K, M] or [K].

    Returns:
        The product, with the shape that `jax.numpy.matmul` gives it.
    """
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def to_compute_dtype(*arrays: jax.Array | None, dtype: Any = None, inexact: bool = True) -> list[Any]:
    """Casts all operands of a layer to one type. The signature is that of Flax's `promote_dtype`.

    Args:
        arrays: Operands of any shape. None stands for an operand that the layer does not have.
        dtype: Type of the computation.
        inexact: Ignored, a part of Flax's signature.

    Returns:
        The operands in order, in float64 if one of them is float64, otherwise in `dtype`.
    """
    del inexact
    given = [array for array in arrays if array is not None]
    if any(array.dtype == jnp.dtype('float64') for array in given):
        dtype = jnp.float64
    return [array if array is None else jnp.asarray(array, dtype) for array in arrays]
