"""Linear classifiers on every feature map of a frozen encoder, trained side by side."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from simclr_jax.losses.supervised import accuracy, softmax_cross_entropy
from simclr_jax.models.classifier import FeatureMapClassifiers
from simclr_jax.tasks.views import by_image, images_of, labels_of


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

    @property
    def details(self) -> tuple[str, ...]:
        """Names of the classifiers: 'feature1', 'feature2', ..."""
        return self.model.names

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Fresh variables, {'params': ..., 'batch_stats': ...}."""
        images = jnp.zeros((2, self.image_size, self.image_size, 3), jnp.float32)
        return self.model.init(key, images, train=True)

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        """Whether the parameter at a path must not move, for `optim.freeze`: all of the encoder."""
        return path[0] == 'encoder'

    def outputs(
        self, params: Any, batch_stats: Any, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[dict[str, jax.Array], Any]:
        """Logits {'feature1': [B, V, K], ...} of a batch of views in training mode, and new batch_stats.

        Args:
            params, batch_stats: the model's variables.
            batch: see data/spec.py.
            key: unused here; the views are random already.
        """
        del key
        logits, updated = self.model.apply(
            {'params': params, 'batch_stats': batch_stats},
            images_of(batch, self.mesh),
            train=True,
            mutable=['batch_stats'],
        )
        return {name: by_image(values, batch) for name, values in logits.items()}, updated['batch_stats']

    def loss(
        self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The sum of the classifiers' softmax cross-entropies over the global batch.

        Args:
            outputs: each classifier's logits [B, V, K].
            batch: see data/spec.py; rows of mask 0 do not count in loss and metrics.

        Returns:
            loss [], and metrics: the loss and each classifier's accuracy, 'feature1_accuracy' to
            'feature5_accuracy'.
        """
        labels, weights = labels_of(batch, batch['views'].shape[1])
        loss = sum(softmax_cross_entropy(logits, labels, weights) for logits in outputs.values())
        accuracies = {f'{name}_accuracy': accuracy(logits, labels, weights) for name, logits in outputs.items()}
        return loss, {'loss': loss, **accuracies}

    def predict(self, variables: dict[str, Any], images: jax.Array) -> dict[str, jax.Array]:
        """Logits {'feature1': [N, K], ..., 'feature5': [N, K]} of images [N, H, H, 3], in inference mode."""
        return self.model.apply(variables, images, train=False)
