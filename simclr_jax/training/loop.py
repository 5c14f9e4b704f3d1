"""The story of a training run: steps, logs, online evaluation, checkpoints. Knows no model."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from simclr_jax import sharding
from simclr_jax.augment.views import MakeViews, given_views
from simclr_jax.data.spec import Batch
from simclr_jax.distributed import Preemption
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.log import Log
from simclr_jax.training.meter import Meter
from simclr_jax.training.profile import Profile
from simclr_jax.training.schedule import Schedule
from simclr_jax.training.state import TrainState
from simclr_jax.training.step import batch_at
from simclr_jax.training.task import Step

# Images whose views are shown at the beginning of a run.
PICTURED = 8


class Preempted(Exception):
    """The run was told to end, and has saved; the message names the step."""


def train(
    state: TrainState,
    train_step: Step,
    batches_from: Callable[[int], Iterator[Batch]],
    *,
    schedule: Schedule,
    mesh: Mesh,
    key: jax.Array,
    checkpoints: Checkpoints,
    log: Log,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    make_views: MakeViews = given_views,
    step_flops: float = 0.0,
    profile: Profile | None = None,
) -> TrainState:
    """Trains from `state.step` to `schedule.total_steps`.

    Args:
        state: where to begin; it is donated to the first step.
        train_step: see step.make_train_step; of several steps where the schedule has more than one a dispatch.
        batches_from: step -> batches from that step on; stacked for `schedule.steps_from` steps there.
        schedule: lengths and intervals.
        mesh: the devices.
        key: of the steps' randomness.
        checkpoints: where the state is saved.
        log: where metrics go.
        evaluate: online evaluation, state -> scalars.
        make_views: the devices' part of the augmentation, for a picture of the first views.
        step_flops: operations of a step on all devices together, for their utilisation; 0: not known.
        profile: the steps to record; None: none.

    Returns:
        The last state, which is saved.

    Raises:
        NotFiniteError: at most meter.STEPS_IN_FLIGHT orders after the loss stopped being a number.
        Preempted: SIGTERM came; the state is saved.
    """
    step = int(state.step)
    if step >= schedule.total_steps:
        log.say(f'Step {step} of {schedule.total_steps} is reached already.')
        return state
    batches = batches_from(step)
    meter = Meter(schedule, checkpoints, step_flops)
    profile = profile or Profile()
    with Preemption() as preemption, profile:
        while step < schedule.total_steps:
            count = schedule.steps_from(step)
            profile.before(step + 1, count)
            with meter.waiting():
                batch = sharding.to_global(next(batches), mesh)
            if step == 0:
                first = batch_at(batch, 0) if schedule.steps_per_dispatch > 1 else batch
                log.images(0, {'views': _first_views(make_views, first, key, mesh)})
            state, metrics = train_step(state, batch, key)
            step += count
            meter.add(step, metrics, images=count * batch['mask'].shape[-1], count=count)

            is_last = step == schedule.total_steps
            is_due = preemption.is_due()
            is_saved = is_last or is_due or step % schedule.checkpoint_every == 0
            meter.check_finite(all_steps=is_saved)
            if is_last or step % schedule.log_every == 0:
                log.progress(step, *meter.read())
                _tell_unreadable(batches, log, meter)
            if is_saved:
                with meter.saving():
                    checkpoints.save(state)
            if is_due and not is_last:
                checkpoints.wait()
                raise Preempted(
                    f'told to end: saved at step {step} of {schedule.total_steps}; the same command goes on'
                )
            if evaluate and schedule.evaluate_every and (is_last or step % schedule.evaluate_every == 0):
                with meter.paused():
                    scalars = evaluate(state)
                log.evaluation(step, scalars)
        checkpoints.wait()
    return state


def _first_views(make_views: MakeViews, batch: dict[str, jax.Array], key: jax.Array, mesh: Mesh) -> np.ndarray:
    """Of the first images of the first step, [PICTURED * V, H, W, 3] in [0, 1]."""

    def first(batch, key):
        rows = jax.tree.map(lambda rows: rows[:PICTURED], batch)
        views = make_views(rows, jax.random.fold_in(key, 0))
        return views.reshape(-1, *views.shape[2:])

    return sharding.to_host(jax.jit(first, out_shardings=sharding.replicated(mesh))(batch, key))


def _tell_unreadable(batches: Iterator[Batch], log: Log, meter: Meter) -> None:
    paths = getattr(batches, 'unreadable', [])
    for path in paths:
        if path not in meter.told:
            log.say(f'No readable image, skipped: {path}')
            meter.told.add(path)
