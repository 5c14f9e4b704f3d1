"""DisCo: a student whose projections follow those of a frozen teacher, beside the contrastive loss."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from simclr_jax.augment.views import MakeViews, given_views
from simclr_jax.losses.distillation import squared_distances
from simclr_jax.models.simclr import SimCLR
from simclr_jax.tasks.memory import TEACHER
from simclr_jax.tasks.simclr import Pretrain
from simclr_jax.tasks.views import by_image, images_of
from simclr_jax.training.task import Metrics, Parts


@dataclasses.dataclass(frozen=True)
class Disco:
    """The task of DisCo (arXiv 2104.09124).

    Attributes:
        student: Pretraining of the student. It takes the views as they are.
        teacher: Encoder and projection head of the teacher. Its batch norms use the statistics of the batch, as in the
            published program.
        weight: Factor of the squared distances, 32 in the paper.
        make_views: Function (batch, key) -> views [B, V, H, W, 3], float. By default the host has made them.
    """

    student: Pretrain
    teacher: SimCLR
    weight: float
    make_views: MakeViews = given_views

    def init(self, key: jax.Array) -> Mapping[str, Any]:
        """Fresh variables of the student, {'params': ..., 'batch_stats': ...}."""
        return self.student.init(key)

    def outputs(
        self, variables: Mapping[str, Any], batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """Runs student and teacher on the same views.

        Args:
            variables: Variables of the student, the parts of its memory, and 'teacher': the teacher's variables.
            batch: Batch, see data/spec.py.
            key: Key of the augmentation, and of what the student's encoder draws.

        Returns:
            Outputs of the student, see `Pretrain.outputs`, with 'teacher': the teacher's projections [B, V, D]. Then
            the student's collections that moved.
        """
        batch = {**batch, 'views': self.make_views(batch, key)}
        outputs, moved = self.student.outputs(variables, batch, key)
        images = images_of(batch, self.student.mesh)
        found, _ = self.teacher.apply(variables[TEACHER], images, train=True, mutable=['batch_stats'])
        return {**outputs, 'teacher': jax.lax.stop_gradient(by_image(found['projection'], batch))}, moved

    def loss(
        self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array], frozen: Parts | None = None
    ) -> tuple[jax.Array, Metrics]:
        """The student's loss and the weighted squared distances from the teacher, over the global batch.

        Args:
            outputs: Outputs of all images of the batch, see `outputs`.
            batch: Batch, see data/spec.py.
            frozen: Frozen parts of the state.

        Returns:
            loss [], and metrics.
        """
        loss, metrics = self.student.loss(outputs, batch, frozen)
        distance = squared_distances(outputs['projection'], outputs['teacher'])
        total = loss + self.weight * distance
        return total, {**metrics, 'teacher_distance': distance, 'loss': total}

    def encode(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
        """Representations h [N, F] float32 of images [N, H, W, 3] by the student, in inference mode."""
        return self.student.encode(variables, images)
