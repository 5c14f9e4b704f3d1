"""SimCLR's pretraining: views through encoder and head into a contrastive loss, a linear probe beside it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from simclr_jax.augment.views import MakeViews, given_views
from simclr_jax.losses.supervised import accuracy, softmax_cross_entropy
from simclr_jax.metrics import representation
from simclr_jax.models.simclr import SimCLR
from simclr_jax.sharding import DATA_AXIS
from simclr_jax.tasks.views import by_image, images_of, labels_of


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """The pretraining task.

    Attributes:
        model: encoder, projection head and, with labels, the probe.
        contrast: z [B, V, D] -> (loss [], metrics), called inside a shard_map over DATA_AXIS.
        loss_scale: multiplies the contrastive loss.
        image_size: of the views, pixels.
        mesh: the devices.
        block_size: views whose products with all others are in memory at a time, for the measures; None: all.
        make_views: (batch, key) -> views [B, V, H, W, 3], float; the batch's own if the host has made them.
    """

    model: SimCLR
    contrast: Callable[[jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
    loss_scale: float
    image_size: int
    mesh: Mesh
    block_size: int | None = None
    make_views: MakeViews = given_views

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Fresh variables, {'params': ..., 'batch_stats': ...}."""
        images = jnp.zeros((2, self.image_size, self.image_size, 3), jnp.float32)
        return self.model.init(key, images, train=True)

    def outputs(
        self, params: Any, batch_stats: Any, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[dict[str, jax.Array], Any]:
        """What the loss is a function of, for some images in training mode.

        Args:
            params, batch_stats: the model's variables.
            batch: see data/spec.py, rows divided among the devices.
            key: of the augmentation, with the images' indices: in which part of a batch an image comes does not matter.

        Returns:
            {'projection': z [B, V, D], and with a probe 'logits': [B, V, K]}, and new batch_stats.
        """
        batch = {**batch, 'views': self.make_views(batch, key)}
        outputs, updated = self.model.apply(
            {'params': params, 'batch_stats': batch_stats},
            images_of(batch, self.mesh),
            train=True,
            mutable=['batch_stats'],
        )
        names = ('projection', 'logits') if self.model.num_classes else ('projection',)
        return {name: by_image(outputs[name], batch) for name in names}, updated['batch_stats']

    def loss(self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple[jax.Array, dict]:
        """The loss of the global batch.

        Args:
            outputs: of all its images.
            batch: see data/spec.py.

        Returns:
            loss [], and metrics.
        """
        loss, metrics = self._contrast(outputs['projection'])
        total = self.loss_scale * loss
        if 'logits' in outputs:
            labels, weights = labels_of(batch, outputs['logits'].shape[1])
            probe_loss = softmax_cross_entropy(outputs['logits'], labels, weights)
            metrics['probe_loss'] = probe_loss
            metrics['probe_accuracy'] = accuracy(outputs['logits'], labels, weights)
            total = total + probe_loss
        return total, {**metrics, 'loss': total}

    def _contrast(self, z: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss and measures of z [B, V, D] over the global batch."""

        def local(z):
            loss, metrics = self.contrast(z)
            fixed = jax.lax.stop_gradient(z)
            return loss, {
                **metrics,
                'contrast_loss': loss,
                'alignment': representation.alignment(fixed, axis_name=DATA_AXIS),
                'uniformity': representation.uniformity(fixed, DATA_AXIS, self.block_size),
                'neighbour_agreement': representation.neighbour_agreement(fixed, DATA_AXIS, self.block_size),
                'z_std': representation.standard_deviation(fixed, axis_name=DATA_AXIS),
                'z_gram': representation.gram(fixed, axis_name=DATA_AXIS),
            }

        return jax.shard_map(local, mesh=self.mesh, in_specs=PartitionSpec(DATA_AXIS), out_specs=PartitionSpec())(z)

    def encode(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
        """Representations h [N, F] float32 of images [N, H, W, 3], in inference mode."""
        return self.model.apply(variables, images, method='encode').astype(jnp.float32)
