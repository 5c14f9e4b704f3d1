"""Between a batch of views and a network: images, outputs and random numbers. No row changes its device."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from simclr_jax.models.encoders import Encoder
from simclr_jax.sharding import by_rows

# Stream of the random numbers that a network draws, beside those of the augmentation.
NETWORK_STREAM = 2**31 - 1


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


def random_numbers(encoder: Encoder, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, Any]:
    """Arguments of a model's `apply` in training for an encoder that draws random numbers: {'rngs': ...}.

    Two parts of a batch draw different numbers. The numbers do not depend on the number of devices.

    Args:
        encoder: Encoder of the model. For one that draws nothing the result is empty.
        batch: Batch or a part of it, see data/spec.py. Its first image tells the parts of a batch apart.
        key: Key of the training step.
    """
    if not encoder.is_random:
        return {}
    key = jax.random.fold_in(jax.random.fold_in(key, NETWORK_STREAM), batch['index'][0])
    return {'rngs': {'dropout': key}}
