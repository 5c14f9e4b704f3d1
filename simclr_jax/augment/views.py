"""What the devices do of the augmentation."""

from collections.abc import Callable

import jax

from simclr_jax.augment import device
from simclr_jax.augment.policy import Policy

# (batch, key) -> views [B, V, H, W, C] float: the devices' part of the augmentation.
MakeViews = Callable[[dict[str, jax.Array], jax.Array], jax.Array]


def given_views(batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """The views that the host has made."""
    del key
    return batch['views']


def make_views_of(pixels: str, policy: Policy) -> MakeViews:
    """A function that augments one array of a batch on the devices.

    The random numbers of an image follow from its index, not from its place in the batch: microbatches and any number
    of devices make the same views.

    Args:
        pixels: 'images', uint8 [B, H, W, 3], or 'views', uint8 [B, V, H, W, 3]. Where the batch has 'sizes', the images
            lie on canvases.
        policy: Operations to apply.

    Returns:
        A function (batch, key) -> views [B, V, H, W, 3], float32 in [0, 1].
    """

    def views_of(batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch['index'])
        return device.augment(batch[pixels], keys, policy, batch.get('sizes'))

    return views_of
