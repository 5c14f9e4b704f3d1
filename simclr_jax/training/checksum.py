"""A checksum of arrays, computed where they are."""

from typing import Any

import jax
import jax.numpy as jnp


def checksum(tree: Any) -> int:
    """A number below 2^32 that changes with any single bit of any array."""
    sums = [_sum_of_words(leaf, jnp.uint32(2 * number + 1)) for number, leaf in enumerate(jax.tree.leaves(tree))]
    total = 0
    for value in jax.device_get(sums):
        total = (31 * total + int(value)) % 2**32
    return total


# One small program is compiled for each shape. A single program for all arrays would take many times longer.
@jax.jit
def _sum_of_words(leaf: jax.Array, first_weight: jax.Array) -> jax.Array:
    """uint32 []: the sum of the words, weighted by odd numbers."""
    words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f'uint{8 * leaf.dtype.itemsize}'))
    words = words.reshape(-1).astype(jnp.uint32)
    return jnp.sum(words * (2 * jax.lax.iota(jnp.uint32, words.size) + first_weight), dtype=jnp.uint32)
