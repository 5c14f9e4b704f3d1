"""The contract between the training step and a task: what is learnt."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from simclr_jax.training.state import TrainState

Batch = dict[str, jax.Array]


Metrics = dict[str, jax.Array]


Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]


class Task(Protocol):
    """The three functions that the step needs of a task. `tasks.simclr.Pretrain` explains them on an example.

    * `init` makes fresh variables, {'params': ..., 'batch_stats': ...}.
    * `outputs` runs the network on images of a batch and returns its outputs and the new batch_stats.
    * `loss` computes the loss [] and metrics from the outputs of all images.

    Network and loss are separate functions, so that the step can compute the outputs a few images at a time.
    """

    def init(self, key: jax.Array) -> Mapping[str, Any]: ...  # noqa: D102

    def outputs(self, params, batch_stats, batch: Batch, key: jax.Array) -> tuple[Any, Any]: ...  # noqa: D102

    def loss(self, outputs, batch: Batch) -> tuple[jax.Array, Metrics]: ...  # noqa: D102
