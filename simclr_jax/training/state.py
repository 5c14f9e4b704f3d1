"""The state that a training run carries from step to step."""

from typing import Any

import flax.struct
import jax


class TrainState(flax.struct.PyTreeNode):
    """The state of a training run: a tree of arrays.

    Attributes:
        step: Number of updates done, int32 [].
        params: Trainable parameters, {'encoder': ..., 'head': ..., 'probe': ...}.
        batch_stats: Moving statistics of the batch norms, nested like the parameters.
        opt_state: State of the optimiser.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
