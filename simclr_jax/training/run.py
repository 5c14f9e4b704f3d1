"""A run in its work directory: start or resume, then the loop. The same for every task."""

import contextlib
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh

from simclr_jax import sharding
from simclr_jax.augment.views import MakeViews, given_views
from simclr_jax.data.spec import Batch
from simclr_jax.training import loop
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.log import Log
from simclr_jax.training.profile import Profile
from simclr_jax.training.schedule import Schedule
from simclr_jax.training.state import TrainState
from simclr_jax.training.task import Step

Say = Callable[[str], None]


def start_or_resume(
    directory: str,
    like: TrainState,
    first_state: Callable[[Say], TrainState],
    step: Step,
    batches: Callable[[int], Iterator[Batch]],
    *,
    schedule: Schedule,
    mesh: Mesh,
    key: jax.Array,
    introduce: Callable[[Say], None],
    checkpoints_kept: int = 1,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    make_views: MakeViews = given_views,
    step_flops: float = 0.0,
    profile: Profile | None = None,
) -> TrainState:
    """Trains to the end of the schedule, from the newest checkpoint in the directory or from a first state.

    Args:
        directory: Work directory of the run, local or gs://. It receives metrics, events and checkpoints.
        like: Shapes and shardings of the state.
        first_state: Makes the state at step 0 where there is no checkpoint. It may write lines to the log.
        step: Training step, see `step.make_train_step`.
        batches: Function of a step that gives the batches from that step on.
        schedule: Lengths and intervals.
        mesh: Devices that train.
        key: Key of the steps' random numbers.
        introduce: Writes what the run is to the log, before anything else.
        checkpoints_kept: Newest checkpoints that stay.
        evaluate: Online evaluation, see `loop.train`.
        make_views: The devices' part of the augmentation, for a picture of the first views.
        step_flops: Operations of a step on all devices together. 0 means unknown.
        profile: Steps to record. None records nothing.

    Returns:
        The last state, which is saved.

    Raises:
        CheckpointError: Checkpoints cannot be read or written.
        NotFiniteError, Preempted: See `loop.train`.
    """
    log = Log(directory, schedule.total_steps, tensorboard=True)
    checkpoints = Checkpoints(directory, keep=checkpoints_kept, say=log.say)
    with contextlib.closing(log), contextlib.closing(checkpoints):
        introduce(log.say)
        if checkpoints.latest_step() is None:
            state = first_state(log.say)
        else:
            state = checkpoints.restore(like)
            log.say(f'Resuming at step {int(state.step)}.')
        log.resume(int(state.step))
        return loop.train(
            state,
            step,
            batches,
            schedule=schedule,
            mesh=mesh,
            key=jax.device_put(key, sharding.replicated(mesh)),
            checkpoints=checkpoints,
            log=log,
            evaluate=evaluate,
            make_views=make_views,
            step_flops=step_flops,
            profile=profile,
        )
