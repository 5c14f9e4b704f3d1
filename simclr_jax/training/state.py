"""What a training run carries from step to step."""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class TrainState:
    """Pure data.

    Attributes:
        step: int32 [], updates done.
        params: trainable parameters, {'encoder': ..., 'head': ..., 'probe': ...}.
        batch_stats: moving statistics of batch norm, of the same outline.
        opt_state: the optimiser's.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
