"""Reshapes a batch of views to images for a network, and the network's outputs back. No row changes its device."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from simclr_jax.sharding import by_rows


def images_of(batch: dict[str, jax.Array], mesh: Mesh) -> jax.Array:
    """Reshapes the views [B, V, H, W, C] of a batch to images [B * V, H, W, C], whose rows the mesh's devices share."""
    views = batch['views']
    return jax.lax.with_sharding_constraint(views.reshape(-1, *views.shape[2:]), by_rows(mesh))


def by_image(values: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """Reshapes a network's outputs [B * V, ...] for `images_of(batch, mesh)` to [B, V, ...]."""
    return values.reshape(*batch['views'].shape[:2], *values.shape[1:])


def labels_of(batch: dict[str, jax.Array], num_views: int) -> tuple[jax.Array, jax.Array]:
    """Repeats the labels and the mask of a batch for each of its V views.

    Returns:
        Labels [B, V], or [B, V, K] where an image may have several, and weights [B, V].
    """
    labels, weights = (jnp.repeat(batch[name][:, None], num_views, axis=1) for name in ('label', 'mask'))
    return labels, weights
