"""Supervised training on top of a pretrained encoder: fine-tuning of the whole encoder or of its upper part.

With all parts of the encoder frozen, head layer 0 and a classifier that starts at zero, this is SimCLR's linear
evaluation by SGD. Only the classifier learns, from the representations of a frozen encoder.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from simclr_jax.losses.supervised import accuracy, sigmoid_cross_entropy, softmax_cross_entropy
from simclr_jax.models.classifier import Classifier, pretrained_into
from simclr_jax.models.encoders import is_in_frozen_part
from simclr_jax.tasks.views import by_image, images_of, labels_of, random_numbers
from simclr_jax.training.state import TrainState
from simclr_jax.training.task import Metrics, Parts, Task


@dataclasses.dataclass(frozen=True)
class Finetune:
    """The fine-tuning task.

    Attributes:
        model: Encoder, layers of the head and classifier.
        image_size: Side of the views, pixels.
        mesh: Devices that train.
        frozen_parts: Number of frozen parts of the encoder, from the image up, see `models.encoders.Encoder`.

    Example:
        A first step from a pretrained state::

            tx = optim.freeze(tx, task.is_frozen)
            init = jax.jit(init_from, static_argnums=(1, 2), out_shardings=replicated(mesh))
            state = init(pretrained, task, tx, key)
            state, metrics = make_train_step(task, tx, mesh)(state, batch, key)
    """

    model: Classifier
    image_size: int
    mesh: Mesh
    frozen_parts: int = 0

    @property
    def details(self) -> tuple[str, ...]:
        """Names of the predictions in results. There is one, called ''."""
        return ('',)

    def init(self, key: jax.Array) -> Mapping[str, Any]:
        """Fresh variables, {'params': ..., 'batch_stats': ...}. `init_from` gives a state with a pretrained encoder."""
        images = jnp.zeros((2, self.image_size, self.image_size, 3), jnp.float32)
        return self.model.init(key, images, train=True)

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        """Whether the parameter at a path ('encoder', 'stage1', ...) must not move, see `optim.freeze`."""
        return is_in_frozen_part(path, self.model.encoder, self.frozen_parts)

    def outputs(
        self, variables: Mapping[str, Any], batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Logits [B, V, K] of a batch of views in training mode, and the new {'batch_stats': ...}.

        Args:
            variables: Variables of the model, {'params': ..., 'batch_stats': ...}.
            batch: Batch, see data/spec.py.
            key: Key of what the encoder draws, see `views.random_numbers`. The views are random already.
        """
        logits, updated = self.model.apply(
            dict(variables),
            images_of(batch, self.mesh),
            train=True,
            frozen=self.frozen_parts,
            mutable=['batch_stats'],
            **random_numbers(self.model.encoder, batch, key),
        )
        return by_image(logits, batch), updated

    def loss(
        self, outputs: jax.Array, batch: dict[str, jax.Array], frozen: Parts | None = None
    ) -> tuple[jax.Array, Metrics]:
        """The supervised loss of the global batch.

        Args:
            outputs: Logits [B, V, K].
            batch: Batch, see data/spec.py. Rows of mask 0 count neither in the loss nor in the metrics. With 'label'
                int [B] (-1: none) the loss is the softmax cross-entropy. With int [B, K] in {1, 0, -1: ignored} it is
                the mean over images of the sigmoid cross-entropies, summed over classes.
            frozen: Not used, because this task has no frozen parts.

        Returns:
            loss [], and metrics.
        """
        del frozen
        labels, weights = labels_of(batch, batch['views'].shape[1])
        if labels.ndim == 3:
            loss = sigmoid_cross_entropy(outputs, labels, weights)
            return loss, {'loss': loss}
        loss = softmax_cross_entropy(outputs, labels, weights)
        return loss, {'loss': loss, 'accuracy': accuracy(outputs, labels, weights)}

    def predict(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
        """Logits [N, K] of images [N, H, W, 3], in inference mode."""
        logits: Any = self.model.apply(variables, images, train=False)
        return logits


def init_from(pretrained: dict[str, Any], task: Task, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """Makes a state at step 0 from a pretraining: its encoder, and those layers of its head that the task has.

    Call this under `jax.jit` with the sharding of the result. The compiler then leaves out the fresh encoder, which is
    not used.

    Args:
        pretrained: Variables of `SimCLR`. They are copied, because the training step donates its buffers and several
            runs may start from the same variables.
        task: Task that is learnt, `Finetune` or `multihead.MultiHead`.
        tx: Optimiser, as a rule `optim.freeze(tx, task.is_frozen)`.
        key: Key of the classifier's initial values.

    Returns:
        The state.

    Raises:
        ValueError: Encoder or head are not those of the pretraining, see `pretrained_into`.
    """
    variables = jax.tree.map(jnp.copy, pretrained_into(dict(task.init(key)), pretrained))
    return TrainState(jnp.zeros((), jnp.int32), **variables, opt_state=tx.init(variables['params']))
