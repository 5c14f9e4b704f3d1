"""A checksum of arrays, computed where they are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def checksum(tree: Any) -> int:
    """A number below 2^32 that changes with any single bit of any array."""
    sums = [
        (_sum_on_the_host if _is_on_the_host(leaf) else _sum_of_words)(leaf, np.uint32(2 * number + 1))
        for number, leaf in enumerate(jax.tree.leaves(tree))
    ]
    total = 0
    for value in jax.device_get(sums):
        total = (31 * total + int(value)) % 2**32
    return total


def _is_on_the_host(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and leaf.is_fully_addressable and {d.platform for d in leaf.devices()} == {'cpu'}


def _sum_on_the_host(leaf: jax.Array, first_weight: np.uint32) -> np.uint32:
    """uint32 []: what `_sum_of_words` computes, without a program to compile."""
    array = np.asarray(leaf)
    words = array.reshape(-1).view(f'uint{8 * array.dtype.itemsize}').astype(np.uint32)
    return np.sum(words * (2 * np.arange(words.size, dtype=np.uint32) + first_weight), dtype=np.uint32)


# One small program is compiled for each shape. A single program for all arrays would take many times longer.
@jax.jit
def _sum_of_words(leaf: jax.Array, first_weight: jax.Array) -> jax.Array:
    """uint32 []: the sum of the words, weighted by odd numbers."""
    words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f'uint{8 * leaf.dtype.itemsize}'))
    words = words.reshape(-1).astype(jnp.uint32)
    return jnp.sum(words * (2 * jax.lax.iota(jnp.uint32, words.size) + first_weight), dtype=jnp.uint32)
