"""SimCLR's pretraining: encoder, projection head and contrastive loss, with a linear probe beside them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from simclr_jax.augment.views import MakeViews, given_views
from simclr_jax.losses.supervised import accuracy, softmax_cross_entropy
from simclr_jax.metrics import representation
from simclr_jax.models.simclr import SimCLR
from simclr_jax.ops.similarities import l2_normalize
from simclr_jax.sharding import DATA_AXIS
from simclr_jax.tasks.memory import KEY_ENCODER, QUEUE
from simclr_jax.tasks.views import by_image, images_of, labels_of, random_numbers
from simclr_jax.training.task import Metrics, Parts

# (z [B, V, D], keys [B, D] or None, rows of the queue [K, D] or None) -> (loss [], metrics).
Contrast = Callable[[jax.Array, jax.Array | None, jax.Array | None], tuple[jax.Array, Metrics]]


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """The pretraining task.

    Attributes:
        model: Encoder, projection head and, with labels, the probe.
        contrast: The contrastive loss. It is called inside a shard_map over DATA_AXIS.
        loss_scale: Factor of the contrastive loss.
        image_size: Side of the views, pixels.
        mesh: Devices that train.
        block_size: Views whose products with all others the measures keep in memory at a time. None means all.
        make_views: Function (batch, key) -> views [B, V, H, W, 3], float. By default the host has made them.
        makes_keys: Whether a momentum encoder makes keys of the last view, see `memory.MomentumMemory`.
        encoded_views: Number of first views that the encoder sees. None: all.
    """

    model: SimCLR
    contrast: Contrast
    loss_scale: float
    image_size: int
    mesh: Mesh
    block_size: int | None = None
    make_views: MakeViews = given_views
    makes_keys: bool = False
    encoded_views: int | None = None

    def init(self, key: jax.Array) -> Mapping[str, Any]:
        """Fresh variables, {'params': ..., 'batch_stats': ...}."""
        images = jnp.zeros((2, self.image_size, self.image_size, 3), jnp.float32)
        return self.model.init(key, images, train=True)

    def outputs(
        self, variables: Mapping[str, Any], batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """Runs the model in training mode on a batch or a part of it.

        Args:
            variables: Variables of the model, {'params': ..., 'batch_stats': ...}, and the parts of the memory.
            batch: Batch, see data/spec.py. Its rows are divided among the devices.
            key: Key of the augmentation, and of what the encoder draws, see `views.random_numbers`. An image's random
                numbers of the augmentation also follow from its index, and therefore do not depend on the part of the
                batch that contains it.

        Returns:
            {'projection': z [B, V, D]}, with a probe also 'logits': [B, V, K], with a memory also 'keys': [B, D], of
            unit length. Then the collections that moved: {'batch_stats': ...}, with a memory also 'key_encoder'.
        """
        views = self.make_views(batch, key)
        seen = {**batch, 'views': views if self.encoded_views is None else views[:, : self.encoded_views]}
        found, moved = _train(self.model, variables, seen, key, self.mesh)
        names = ('projection', 'logits') if self.model.num_classes else ('projection',)
        outputs = {name: by_image(found[name], seen) for name in names}
        if self.makes_keys:
            last = {**batch, 'views': views[:, -1:]}
            encoder = self.model.clone(num_classes=0)
            found, updated = _train(encoder, variables[KEY_ENCODER], last, key, self.mesh)
            outputs['keys'] = jax.lax.stop_gradient(l2_normalize(found['projection']))
            moved[KEY_ENCODER] = updated['batch_stats']
        return outputs, moved

    def loss(
        self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array], frozen: Parts | None = None
    ) -> tuple[jax.Array, Metrics]:
        """The sum of the scaled contrastive loss and the probe's cross-entropy, over the global batch.

        Args:
            outputs: Outputs of all images of the batch, see `outputs`.
            batch: Batch, see data/spec.py.
            frozen: Parts of the memory.

        Returns:
            loss [], and metrics.
        """
        queue = frozen[QUEUE]['rows'] if frozen and QUEUE in frozen else None
        loss, metrics = self._contrast(outputs['projection'], outputs.get('keys'), queue)
        total = self.loss_scale * loss
        if 'logits' in outputs:
            labels, weights = labels_of(batch, outputs['logits'].shape[1])
            probe_loss = softmax_cross_entropy(outputs['logits'], labels, weights)
            metrics['probe_loss'] = probe_loss
            metrics['probe_accuracy'] = accuracy(outputs['logits'], labels, weights)
            total = total + probe_loss
        return total, {**metrics, 'loss': total}

    def _contrast(
        self, z: jax.Array, keys: jax.Array | None, queue: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Contrastive loss and measures of z [B, V, D] over the global batch."""

        def local(z, keys, queue):
            loss, metrics = self.contrast(z, keys, queue)
            fixed = jax.lax.stop_gradient(z)
            if fixed.shape[1] == 1:
                # The only other view of an image is that of its key.
                fixed = jnp.concatenate([l2_normalize(fixed), keys[:, None]], axis=1)
            return loss, {
                **metrics,
                'contrast_loss': loss,
                'alignment': representation.alignment(fixed, axis_name=DATA_AXIS),
                'uniformity': representation.uniformity(fixed, DATA_AXIS, self.block_size),
                'neighbour_agreement': representation.neighbour_agreement(fixed, DATA_AXIS, self.block_size),
                'z_std': representation.standard_deviation(fixed, axis_name=DATA_AXIS),
                'z_gram': representation.gram(fixed, axis_name=DATA_AXIS),
            }

        rows, everywhere = PartitionSpec(DATA_AXIS), PartitionSpec()
        together = jax.shard_map(local, mesh=self.mesh, in_specs=(rows, rows, everywhere), out_specs=everywhere)
        return together(z, keys, queue)

    def encode(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
        """Representations h [N, F] float32 of images [N, H, W, 3], in inference mode."""
        h: Any = self.model.apply(variables, images, method='encode')
        return h.astype(jnp.float32)


def _train(
    model: SimCLR, variables: Mapping[str, Any], batch: dict[str, jax.Array], key: jax.Array, mesh: Mesh
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs of a model in training mode for the views of a batch, and its collections that moved."""
    known = {name: variables[name] for name in ('params', 'batch_stats')}
    random = random_numbers(model.encoder, batch, key)
    found, moved = model.apply(known, images_of(batch, mesh), train=True, mutable=['batch_stats'], **random)
    return found, dict(moved)
