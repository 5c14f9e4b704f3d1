"""Linear classifiers on every feature map of a frozen encoder, trained side by side."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from simclr_jax.losses.supervised import accuracy, softmax_cross_entropy
from simclr_jax.models.classifier import FeatureMapClassifiers
from simclr_jax.tasks.views import by_image, images_of, labels_of
from simclr_jax.training.task import Metrics, Parts


@dataclasses.dataclass(frozen=True)
class MultiHead:
    """The multi-head linear probe. `finetune.init_from` makes its first state from a pretraining.

    Attributes:
        model: Frozen encoder and its classifiers, one for each part.
        image_size: Side of the views, pixels.
        mesh: Devices that train.
    """

    model: FeatureMapClassifiers
    image_size: int
    mesh: Mesh

    @property
    def details(self) -> tuple[str, ...]:
        """Names of the classifiers: 'feature1', 'feature2', ..."""
        return self.model.names

    def init(self, key: jax.Array) -> Mapping[str, Any]:
        """Fresh variables, {'params': ..., 'batch_stats': ...}."""
        images = jnp.zeros((2, self.image_size, self.image_size, 3), jnp.float32)
        return self.model.init(key, images, train=True)

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        """Whether the parameter at a path must not move, see `optim.freeze`. The whole encoder must not."""
        return path[0] == 'encoder'

    def outputs(
        self, variables: Mapping[str, Any], batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[dict[str, jax.Array], Any]:
        """Logits {'feature1': [B, V, K], ...} of a batch of views in training mode, and the new {'batch_stats': ...}.

        Args:
            variables: Variables of the model, {'params': ..., 'batch_stats': ...}.
            batch: Batch, see data/spec.py.
            key: Not used, because the views are random already.
        """
        del key
        logits, updated = self.model.apply(
            dict(variables),
            images_of(batch, self.mesh),
            train=True,
            mutable=['batch_stats'],
        )
        return {name: by_image(values, batch) for name, values in logits.items()}, updated

    def loss(
        self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array], frozen: Parts | None = None
    ) -> tuple[jax.Array, Metrics]:
        """The sum of the classifiers' softmax cross-entropies over the global batch.

        Args:
            outputs: Logits [B, V, K] of each classifier.
            batch: Batch, see data/spec.py. Rows of mask 0 count neither in the loss nor in the metrics.
            frozen: Not used, because this task has no frozen parts.

        Returns:
            loss [], and metrics. These are the loss and the accuracies of the classifiers, 'feature1_accuracy',
            'feature2_accuracy', ...
        """
        del frozen
        labels, weights = labels_of(batch, batch['views'].shape[1])
        first, *others = (softmax_cross_entropy(logits, labels, weights) for logits in outputs.values())
        loss = sum(others, start=first)
        accuracies = {f'{name}_accuracy': accuracy(logits, labels, weights) for name, logits in outputs.items()}
        return loss, {'loss': loss, **accuracies}

    def predict(self, variables: dict[str, Any], images: jax.Array) -> dict[str, jax.Array]:
        """Logits {'feature1': [N, K], 'feature2': [N, K], ...} of images [N, H, H, 3], in inference mode."""
        logits: Any = self.model.apply(variables, images, train=False)
        return logits
