"""The state that a training run carries from step to step."""

from typing import Any

import flax.struct
import jax


class Frozen(flax.struct.PyTreeNode):
    """What a task needs beside its parameters. No part of it is differentiated, and no optimiser knows it.

    Attributes:
        constant: Parts that never change, by name: a teacher. Checkpoints hold their checksum alone.
        updated: Parts that the step updates, by name: a momentum encoder, a queue. Checkpoints hold them.
    """

    constant: dict[str, Any] = flax.struct.field(default_factory=dict)
    updated: dict[str, Any] = flax.struct.field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Any]:
        """All parts by name."""
        return {**self.constant, **self.updated}


class TrainState(flax.struct.PyTreeNode):
    """The state of a training run: a tree of arrays.

    Attributes:
        step: Number of updates done, int32 [].
        params: Trainable parameters, {'encoder': ..., 'head': ..., 'probe': ...}.
        batch_stats: Moving statistics of the batch norms, nested like the parameters.
        opt_state: State of the optimiser.
        frozen: What the task needs beside these. Empty for most tasks.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    frozen: Frozen = flax.struct.field(default_factory=Frozen)
