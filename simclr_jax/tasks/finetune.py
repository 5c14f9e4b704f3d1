"""Supervised training on top of a pretrained encoder: fine-tuning, of all of it or of its upper part.

With train_after_block 4, head layer 0 and a classifier that starts at zero this is SimCLR's linear evaluation
by SGD: nothing but the classifier learns, on the representations of a frozen encoder.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from simclr_jax.losses.supervised import accuracy, sigmoid_cross_entropy, softmax_cross_entropy
from simclr_jax.models.classifier import Classifier, pretrained_into
from simclr_jax.models.resnet import frozen_parts
from simclr_jax.tasks.views import by_image, images_of, labels_of
from simclr_jax.training.state import TrainState
from simclr_jax.training.task import Task


@dataclasses.dataclass(frozen=True)
class Finetune:
    """The fine-tuning task.

    Attributes:
        model: encoder, layers of the head and classifier.
        image_size: of the views, pixels.
        mesh: the devices.
        train_after_block: which parts of the encoder are frozen, see `models.resnet.frozen_parts`.

    Example:
        >>> tx = optim.freeze(tx, task.is_frozen)
        >>> state = jax.jit(init_from, static_argnums=(1, 2), out_shardings=replicated(mesh))(pretrained, task, tx, key)
        >>> state, metrics = make_train_step(task, tx, mesh)(state, batch, key)
    """

    model: Classifier
    image_size: int
    mesh: Mesh
    train_after_block: int = -1
    details: ClassVar = ('',)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Fresh variables, {'params': ..., 'batch_stats': ...}; `init_from` has a pretrained encoder."""
        images = jnp.zeros((2, self.image_size, self.image_size, 3), jnp.float32)
        return self.model.init(key, images, train=True)

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        """Whether the parameter at a path ('encoder', 'stage1', ...) must not move, for `optim.freeze`."""
        return path[0] == 'encoder' and path[1] in frozen_parts(self.train_after_block)

    def outputs(
        self, params: Any, batch_stats: Any, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Logits [B, V, K] of a batch of views in training mode, and new batch_stats.

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
            train_after_block=self.train_after_block,
            mutable=['batch_stats'],
        )
        return by_image(logits, batch), updated['batch_stats']

    def loss(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The supervised loss of the global batch.

        Args:
            outputs: logits [B, V, K].
            batch: see data/spec.py; rows of mask 0 do not count in loss and metrics. 'label' int [B], -1: none,
                for the softmax cross-entropy; or int [B, K] in {1, 0, -1: ignored} for the mean over images of
                the classes' summed sigmoid cross-entropies.

        Returns:
            loss [], and metrics.
        """
        labels, weights = labels_of(batch, batch['views'].shape[1])
        if labels.ndim == 3:
            loss = sigmoid_cross_entropy(outputs, labels, weights)
            return loss, {'loss': loss}
        loss = softmax_cross_entropy(outputs, labels, weights)
        return loss, {'loss': loss, 'accuracy': accuracy(outputs, labels, weights)}

    def predict(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
        """Logits [N, K] of images [N, H, W, 3], in inference mode."""
        return self.model.apply(variables, images, train=False)


def init_from(pretrained: dict[str, Any], task: Task, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A state at step 0 with the encoder of a pretraining, and those layers of its head that the task has.

    To be jitted, with the sharding of the result: it draws no fresh encoder that nobody uses then.

    Args:
        pretrained: variables of `SimCLR`. They are copied: the training step gives its buffers away, and
            several runs may start from the same.
        task: what is learnt: `Finetune`, or `multihead.MultiHead`.
        tx: the optimiser, as a rule `optim.freeze(tx, task.is_frozen)`.
        key: of the classifier's initial values.

    Returns:
        The state.

    Raises:
        ValueError: encoder or head are not those of the pretraining; see `pretrained_into`.
    """
    variables = jax.tree.map(jnp.copy, pretrained_into(task.init(key), pretrained))
    return TrainState(jnp.zeros((), jnp.int32), **variables, opt_state=tx.init(variables['params']))
