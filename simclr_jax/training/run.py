"""A run in its work directory: start or resume, then the loop. The same for every task."""

import contextlib
from collections.abc import Callable

from simclr_jax.training import loop
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.log import Log
from simclr_jax.training.loop import Training
from simclr_jax.training.state import TrainState

Say = Callable[[str], None]


def start_or_resume(
    directory: str,
    like: TrainState,
    first_state: Callable[[Say], TrainState],
    training: Training,
    *,
    introduce: Callable[[Say], None],
    checkpoints_kept: int = 1,
) -> TrainState:
    """Trains to the end of the schedule, from the newest checkpoint in the directory or from a first state.

    Args:
        directory: Work directory of the run, local or gs://. It receives metrics, events and checkpoints.
        like: Shapes and shardings of the state.
        first_state: Makes the state at step 0, if the directory has no checkpoint. It may write lines to the log.
        training: Step, batches, schedule and the other fixed parts of the run.
        introduce: Writes what the run is to the log, before anything else.
        checkpoints_kept: Newest checkpoints that stay.

    Returns:
        The last state, which is saved.

    Raises:
        CheckpointError: Checkpoints cannot be read or written.
        NotFiniteError, Preempted: See `loop.train`.
    """
    log = Log(directory, training.schedule.total_steps, tensorboard=True)
    checkpoints = Checkpoints(directory, keep=checkpoints_kept, say=log.say)
    with contextlib.closing(log), contextlib.closing(checkpoints):
        introduce(log.say)
        state = checkpoints.restore(like)
        if state is None:
            state = first_state(log.say)
        else:
            log.say(f'Resuming at step {int(state.step)}.')
        log.resume(int(state.step))
        return loop.train(state, training, checkpoints, log)
