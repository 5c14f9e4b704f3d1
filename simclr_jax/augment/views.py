"""What the devices do of the augmentation."""

from collections.abc import Callable

import jax

# (batch, key) -> views [B, V, H, W, C] float: what the devices do of the augmentation.
MakeViews = Callable[[dict[str, jax.Array], jax.Array], jax.Array]


def given_views(batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """Those that the host has made."""
    del key
    return batch['views']
