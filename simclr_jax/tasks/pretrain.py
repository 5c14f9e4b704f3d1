"""SimCLR's pretraining: views through encoder and head into a contrastive loss, a linear probe beside it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from simclr_jax.augment.views import MakeViews, given_views
from simclr_jax.losses.contrastive import margin_triplet, nt_logistic, nt_xent
from simclr_jax.losses.supervised import accuracy, softmax_cross_entropy
from simclr_jax.metrics import representation
from simclr_jax.models.heads import ProjectionHead
from simclr_jax.models.resnet import ResNet
from simclr_jax.models.simclr import SimCLR
from simclr_jax.sharding import DATA_AXIS
from simclr_jax.tasks.views import by_image, images_of, labels_of

# The stem without stride is for images up to this size, pixels.
CIFAR_STEM_UP_TO = 32


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


def make_model(config: ConfigDict, num_classes: int) -> SimCLR:
    """The model that a configuration describes; `num_classes` 0 leaves the probe out."""
    dtype = jnp.dtype(config.model.dtype)
    stem = config.model.stem
    if stem == 'auto':
        stem = 'cifar' if config.data.image_size <= CIFAR_STEM_UP_TO else 'imagenet'
    encoder = ResNet(
        depth=config.model.depth,
        width=config.model.width,
        stem=stem,
        sk_ratio=config.model.sk_ratio,
        se_ratio=config.model.se_ratio,
        dtype=dtype,
        remat=config.model.remat,
    )
    head = ProjectionHead(
        kind=config.head.kind,
        layers=config.head.layers,
        out_dim=config.head.out_dim,
        hidden_dim=config.head.hidden_dim or None,
        dtype=dtype,
    )
    return SimCLR(encoder=encoder, head=head, num_classes=num_classes if config.probe else 0, dtype=dtype)


def make_task(config: ConfigDict, num_classes: int, mesh: Mesh, make_views: MakeViews = given_views) -> Pretrain:
    """The pretraining task that a configuration describes, on data with so many classes (0: none).

    Args:
        config: of the pretraining.
        num_classes: of the probe.
        mesh: the devices.
        make_views: see Pretrain.
    """
    loss, block_size = config.loss, config.loss.block_size or None
    if loss.name == 'nt_xent':
        contrast = functools.partial(nt_xent, temperature=loss.temperature, block_size=block_size)
    elif loss.name == 'nt_logistic':
        contrast = functools.partial(nt_logistic, temperature=loss.temperature, semi_hard=loss.semi_hard)
    else:
        contrast = functools.partial(margin_triplet, margin=loss.margin, semi_hard=loss.semi_hard)
    return Pretrain(
        model=make_model(config, num_classes),
        contrast=functools.partial(contrast, normalize=loss.normalize, axis_name=DATA_AXIS),
        loss_scale=config.loss_scale,
        image_size=config.data.image_size,
        mesh=mesh,
        block_size=block_size,
        make_views=make_views,
    )
