"""The contract between the training step and a task: what is learnt."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from simclr_jax.training.state import TrainState

Batch = dict[str, jax.Array]


Metrics = dict[str, jax.Array]


Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]

# Frozen parts of a state by name, see `state.Frozen`.
Parts = Mapping[str, Any]


class Task(Protocol):
    """The three functions that the step needs of a task. `tasks.simclr.Pretrain` explains them on an example.

    * `init` makes fresh variables, {'params': ..., 'batch_stats': ...}.
    * `outputs` runs the network on images of a batch. It returns the outputs, and the collections of variables that
      have moved: {'batch_stats': ...}. Its `variables` are those of `init` and the frozen parts.
    * `loss` computes the loss [] and metrics from the outputs of all images and the frozen parts.

    Network and loss are separate functions, so that the step can compute the outputs a few images at a time.
    """

    def init(self, key: jax.Array) -> Mapping[str, Any]: ...  # noqa: D102

    def outputs(self, variables: Mapping[str, Any], batch: Batch, key: jax.Array) -> tuple[Any, Any]: ...  # noqa: D102

    def loss(self, outputs, batch: Batch, frozen: Parts) -> tuple[jax.Array, Metrics]: ...  # noqa: D102


class Memory(Protocol):
    """Frozen parts that the step updates, see `state.Frozen.updated`. `tasks.memory.MomentumMemory` is one.

    * `init` makes the parts from a key and fresh variables of the task.
    * `before` gives the parts with which the step computes, from the parameters before the step.
    * `after` gives the parts after the step, from the outputs of all images and the collections that moved.
    """

    def init(self, key: jax.Array, variables: Mapping[str, Any]) -> Parts: ...  # noqa: D102

    def before(self, params: Any, parts: Parts) -> Parts: ...  # noqa: D102

    def after(self, parts: Parts, outputs: Any, moved: Mapping[str, Any]) -> Parts: ...  # noqa: D102
