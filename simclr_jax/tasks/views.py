"""From a batch of views to images for a network, and back. No row changes its device."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from simclr_jax.sharding import by_rows


def images_of(batch: dict[str, jax.Array], mesh: Mesh) -> jax.Array:
    """The views [B, V, H, W, C] of a batch as images [B * V, H, W, C]."""
    views = batch['views']
    return jax.lax.with_sharding_constraint(views.reshape(-1, *views.shape[2:]), by_rows(mesh))


def by_image(values: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """What a network makes of `images_of` a batch, [B * V, ...], as [B, V, ...]."""
    return values.reshape(*batch['views'].shape[:2], *values.shape[1:])


def labels_of(batch: dict[str, jax.Array], num_views: int) -> tuple[jax.Array, jax.Array]:
    """Labels [B, V], or [B, V, K] where an image has several, and weights [B, V] of the V views of a batch."""
    labels, weights = (jnp.repeat(batch[name][:, None], num_views, axis=1) for name in ('label', 'mask'))
    return labels, weights
