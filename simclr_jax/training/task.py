"""What a training step needs of what is learnt."""

from collections.abc import Callable
from typing import Any, Protocol

import jax

from simclr_jax.training.state import TrainState

Batch = dict[str, jax.Array]


Metrics = dict[str, jax.Array]


Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]


class Task(Protocol):
    """What the step needs of a task; tasks/pretrain.py has the meaning.

    The loss is a function of the outputs of all images, so that the outputs may be made a few images at a time.
    """

    def init(self, key: jax.Array) -> dict[str, Any]: ...  # noqa: D102

    def outputs(self, params, batch_stats, batch: Batch, key: jax.Array) -> tuple[Any, Any]: ...  # noqa: D102

    def loss(self, outputs, batch: Batch) -> tuple[jax.Array, Metrics]: ...  # noqa: D102
