"""Linear classifiers on every feature map of a frozen encoder, trained side by side."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from simclr_jax import losses
from simclr_jax.models.classifier import FeatureMapClassifiers
from simclr_jax.tasks.finetune import labelled_images


@dataclasses.dataclass(frozen=True)
class MultiHead:
    """The multi-head linear probe; its states start from a pretraining as those of `finetune.Finetune` do.

    Attributes:
        model: frozen encoder and its five classifiers.
        image_size: of the views, pixels.
        mesh: the devices.
    """

    model: FeatureMapClassifiers
    image_size: int
    mesh: Mesh

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Fresh variables, {'params': ..., 'batch_stats': ...}."""
        images = jnp.zeros((2, self.image_size, self.image_size, 3), jnp.float32)
        return self.model.init(key, images, train=True)

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        """Whether the parameter at a path must not move, for `optim.freeze`: all of the encoder."""
        return path[0] == 'encoder'

    def loss(
        self, params: Any, batch_stats: Any, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        """The sum of the classifiers' softmax cross-entropies over one global batch.

        Args:
            params, batch_stats: the model's variables.
            batch: see data/spec.py; rows of mask 0 do not count in loss and metrics.
            key: unused here; the views are random already.

        Returns:
            loss [], and (metrics, new batch_stats); metrics are the loss and each classifier's accuracy,
            'feature1_accuracy' to 'feature5_accuracy'.
        """
        del key
        images, labels, weights = labelled_images(batch, self.mesh)
        logits, updated = self.model.apply(
            {'params': params, 'batch_stats': batch_stats}, images, train=True, mutable=['batch_stats']
        )
        loss = sum(losses.softmax_cross_entropy(values, labels, weights) for values in logits.values())
        accuracies = {f'{name}_accuracy': losses.accuracy(values, labels, weights) for name, values in logits.items()}
        return loss, ({'loss': loss, **accuracies}, updated['batch_stats'])

    def predict(self, variables: dict[str, Any], images: jax.Array) -> dict[str, jax.Array]:
        """Logits {'feature1': [N, K], ..., 'feature5': [N, K]} of images [N, H, H, 3], in inference mode."""
        return self.model.apply(variables, images, train=False)
