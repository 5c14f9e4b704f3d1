"""The precisions of a model: what computes in its `dtype`, and what in float32 at least.

Parameters and moving statistics are float32. Each layer computes in the `dtype` it is given, but where its
input or its parameters are float64, so is the computation: double precision is never rounded by a default.
"""

from typing import Any

import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
    """`x` in float32, or in float64 if it is that already: for sums, statistics and what leaves the model."""
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def to_compute_dtype(*arrays: jax.Array | None, dtype: Any, inexact: bool = True) -> list[jax.Array | None]:
    """All arrays in `dtype`, or in float64 if one of them is; the signature is Flax' `promote_dtype`."""
    del inexact
    given = [array for array in arrays if array is not None]
    if any(array.dtype == jnp.dtype('float64') for array in given):
        dtype = jnp.float64
    return [array if array is None else jnp.asarray(array, dtype) for array in arrays]
