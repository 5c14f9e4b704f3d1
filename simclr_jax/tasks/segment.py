"""Supervised training of a segmentation on top of a pretrained encoder, which is frozen or fine-tuned."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from simclr_jax.losses.supervised import accuracy, softmax_cross_entropy
from simclr_jax.metrics.segmentation import IGNORED
from simclr_jax.models.encoders import is_in_frozen_part
from simclr_jax.models.segmenter import Segmenter, upsampled
from simclr_jax.tasks.views import images_of, random_numbers
from simclr_jax.training.task import Metrics, Parts


@dataclasses.dataclass(frozen=True)
class Segment:
    """The segmentation task. `finetune.init_from` makes its first state from a pretraining.

    Attributes:
        model: Encoder and head.
        image_size: Side of the views, pixels.
        mesh: Devices that train.
        frozen_parts: Number of frozen parts of the encoder, from the image up, see `models.encoders.Encoder`.
    """

    model: Segmenter
    image_size: int
    mesh: Mesh
    frozen_parts: int = 0

    def init(self, key: jax.Array) -> Mapping[str, Any]:
        """Fresh variables, {'params': ..., 'batch_stats': ...}."""
        images = jnp.zeros((2, self.image_size, self.image_size, 3), jnp.float32)
        return self.model.init(key, images, train=True)

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        """Whether the parameter at a path ('encoder', 'stage1', ...) must not move, see `optim.freeze`."""
        return is_in_frozen_part(path, self.model.encoder, self.frozen_parts)

    def outputs(
        self, variables: Mapping[str, Any], batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Logits [B, H', W', K] at the resolution of the encoder's last map, and the new {'batch_stats': ...}.

        Args:
            variables: Variables of the model, {'params': ..., 'batch_stats': ...}.
            batch: Training batch, see data/mask_views.py.
            key: Key of what the encoder draws, see `views.random_numbers`. The views are random already.
        """
        batch = {**batch, 'views': float_views(batch, key)}
        logits, updated = self.model.apply(
            dict(variables),
            images_of(batch, self.mesh),
            train=True,
            frozen=self.frozen_parts,
            mutable=['batch_stats'],
            **random_numbers(self.model.encoder, batch, key),
        )
        return logits, updated

    def loss(
        self, outputs: jax.Array, batch: dict[str, jax.Array], frozen: Parts | None = None
    ) -> tuple[jax.Array, Metrics]:
        """The mean cross-entropy of all pixels of the global batch that are not ignored.

        Args:
            outputs: Logits [B, H', W', K].
            batch: Training batch, see data/mask_views.py. Rows of mask 0 do not count.
            frozen: Not used, because this task has no frozen parts.

        Returns:
            loss [], and metrics.
        """
        del frozen
        logits = upsampled(outputs, self.image_size)
        classes = batch['classes'].astype(jnp.int32)
        labels = jnp.where(classes == IGNORED, -1, classes)
        weights = jnp.broadcast_to(batch['mask'][:, None, None], labels.shape)
        loss = softmax_cross_entropy(logits, labels, weights)
        return loss, {'loss': loss, 'accuracy': accuracy(logits, labels, weights)}

    def predict(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
        """Classes, uint8 [N, S, S], of images, uint8 [N, S, S, 3], in inference mode."""
        logits: Any = self.model.apply(variables, images.astype(jnp.float32) / 255, train=False)
        return jnp.argmax(upsampled(logits, images.shape[1]), axis=-1).astype(jnp.uint8)


def float_views(batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """The views of a batch in [0, 1], float32 [B, 1, S, S, 3].

    Args:
        batch: Batch with 'views', uint8 [B, 1, S, S, 3].
        key: Not used, because the views are random already.
    """
    del key
    return batch['views'].astype(jnp.float32) / 255
