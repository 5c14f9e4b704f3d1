"""Distillation of a classifier into a student: SimCLRv2's self-training (arXiv 2006.10029, section 2)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from simclr_jax.augment.views import MakeViews, given_views
from simclr_jax.losses.distillation import distillation
from simclr_jax.losses.supervised import accuracy
from simclr_jax.models.classifier import Classifier
from simclr_jax.tasks.memory import TEACHER
from simclr_jax.tasks.views import by_image, images_of, labels_of, random_numbers
from simclr_jax.training.task import Metrics, Parts


@dataclasses.dataclass(frozen=True)
class Distill:
    """The distillation task.

    Attributes:
        student: Encoder and linear classifier that learn.
        teacher: Fine-tuned encoder, layers of its head and classifier. It runs in inference mode.
        alpha: Share of the teacher in the loss, in [0, 1]. At 1 no label is read by the loss.
        temperature: Temperature of the probabilities.
        tau_squared: Whether the teacher's part of the loss is multiplied by the squared temperature.
        divisor: Divisor of the labels' part, see `losses.distillation.distillation`.
        image_size: Side of the views, pixels.
        mesh: Devices that train.
        make_views: Function (batch, key) -> views [B, V, H, W, 3], float. By default the host has made them.
        measures_accuracy: Whether the labels are those of the teacher's classes.
    """

    student: Classifier
    teacher: Classifier
    alpha: float
    temperature: float
    tau_squared: bool
    divisor: str
    image_size: int
    mesh: Mesh
    make_views: MakeViews = given_views
    measures_accuracy: bool = True

    def init(self, key: jax.Array) -> Mapping[str, Any]:
        """Fresh variables of the student, {'params': ..., 'batch_stats': ...}."""
        images = jnp.zeros((2, self.image_size, self.image_size, 3), jnp.float32)
        return self.student.init(key, images, train=True)

    def outputs(
        self, variables: Mapping[str, Any], batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """Runs student and teacher on the same views.

        Args:
            variables: Variables of the student, and 'teacher': the teacher's variables.
            batch: Batch, see data/spec.py.
            key: Key of the augmentation, and of what the student's encoder draws.

        Returns:
            {'logits': the student's [B, V, K], 'teacher': the teacher's [B, V, K]}, and the new {'batch_stats': ...}.
        """
        batch = {**batch, 'views': self.make_views(batch, key)}
        images = images_of(batch, self.mesh)
        known = {name: variables[name] for name in ('params', 'batch_stats')}
        random = random_numbers(self.student.encoder, batch, key)
        logits, moved = self.student.apply(known, images, train=True, mutable=['batch_stats'], **random)
        taught: Any = self.teacher.apply(variables[TEACHER], images, train=False)
        found = {'logits': logits, 'teacher': jax.lax.stop_gradient(taught)}
        return {name: by_image(values, batch) for name, values in found.items()}, dict(moved)

    def loss(
        self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array], frozen: Parts | None = None
    ) -> tuple[jax.Array, Metrics]:
        """The distillation loss of the global batch.

        Args:
            outputs: Outputs of all images of the batch, see `outputs`.
            batch: Batch, see data/spec.py. Rows of mask 0 do not count.
            frozen: Not used, because the teacher has been at work in `outputs`.

        Returns:
            loss [], and metrics. The accuracies of a batch without labels are NaN, which the log leaves out.
        """
        del frozen
        student, teacher = outputs['logits'], outputs['teacher']
        labels, weights = labels_of(batch, student.shape[1])
        loss, metrics = distillation(
            student,
            teacher,
            labels,
            alpha=self.alpha,
            temperature=self.temperature,
            tau_squared=self.tau_squared,
            divisor=self.divisor,
            weights=weights,
        )
        choice = jnp.argmax(teacher, axis=-1).astype(labels.dtype)
        metrics |= {'loss': loss, 'agreement': accuracy(student, choice, weights)}
        if self.measures_accuracy:
            # Of a small label budget, a batch may hold none.
            is_labelled = jnp.any((labels >= 0) & (weights > 0))
            for name, logits in (('accuracy', student), ('teacher_accuracy', teacher)):
                metrics[name] = jnp.where(is_labelled, accuracy(logits, labels, weights), jnp.nan)
        return loss, metrics

    def encode(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
        """Representations h [N, F] float32 of images [N, H, W, 3] by the student, in inference mode."""
        h: Any = self.student.apply(variables, images, method='features')
        return h.astype(jnp.float32)

    def predict(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
        """Logits [N, K] of images [N, H, W, 3] by the student, in inference mode."""
        logits: Any = self.student.apply(variables, images, train=False)
        return logits
