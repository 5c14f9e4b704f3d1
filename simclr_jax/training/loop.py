"""The story of a training run: steps, logs, online evaluation, checkpoints. It does not depend on the model."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from simclr_jax import distributed, sharding
from simclr_jax.augment.views import MakeViews, given_views
from simclr_jax.data.spec import SKIPPED, FeedBatch
from simclr_jax.distributed import Preemption
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.log import Log
from simclr_jax.training.meter import Meter
from simclr_jax.training.profile import Profile
from simclr_jax.training.schedule import Schedule
from simclr_jax.training.state import TrainState
from simclr_jax.training.task import Step

# Images whose views are shown at the beginning of a run.
PICTURED = 8


class Preempted(Exception):
    """The run received a signal and has saved its state. The message names the step.

    Args:
        message: What the user needs to know.
        number: Signal that the run received.
    """

    def __init__(self, message: str, number: signal.Signals):
        super().__init__(message)
        self.number = number


@dataclasses.dataclass(frozen=True)
class Training:
    """The fixed parts of a run: everything except its state and its directory.

    Attributes:
        step: Training step, see `step.make_train_step`.
        batches: Function of a step that gives the batches from that step on.
        schedule: Lengths and intervals.
        mesh: Devices that train.
        key: Key of the steps' random numbers.
        evaluate: Online evaluation, a function of the state that gives scalars. None means no evaluation.
        make_views: The devices' part of the augmentation, for a picture of the first views.
        step_flops: Operations of a step on all devices together, for their utilisation. 0 means unknown.
        profile: Steps to record.
    """

    step: Step
    batches: Callable[[int], Iterator[FeedBatch]]
    schedule: Schedule
    mesh: Mesh
    key: jax.Array
    evaluate: Callable[[TrainState], dict[str, float]] | None = None
    make_views: MakeViews = given_views
    step_flops: float = 0.0
    profile: Profile = dataclasses.field(default_factory=Profile)


def train(state: TrainState, training: Training, checkpoints: Checkpoints, log: Log) -> TrainState:
    """Trains from `state.step` to the end of the schedule.

    Args:
        state: First state. It is donated to the first step.
        training: Step, batches, schedule and the other fixed parts of the run.
        checkpoints: Checkpoints of the run.
        log: Receiver of the metrics.

    Returns:
        The last state, which is saved.

    Raises:
        NotFiniteError: The loss was not finite, at most meter.STEPS_IN_FLIGHT steps ago.
        Preempted: SIGTERM, SIGINT (Ctrl-C) or SIGHUP came. The state is saved.
    """
    schedule, mesh = training.schedule, training.mesh
    step = first_step = int(state.step)
    if step >= schedule.total_steps:
        log.say(f'Step {step} of {schedule.total_steps} is reached already.')
        return state
    batches = training.batches(step)
    # By a program: `device_put` places no key on the devices of several processes.
    key = jax.jit(lambda key: key, out_shardings=sharding.replicated(mesh))(training.key)
    meter = Meter(schedule, checkpoints, training.step_flops)
    clock = SaveClock(schedule)
    preemption = Preemption()
    with contextlib.ExitStack() as signals, training.profile as profile:
        while step < schedule.total_steps:
            profile.before(step + 1)
            with meter.waiting():
                batch = sharding.to_global(next(batches), mesh)
            if step == 0:
                log.images(0, {'views': _first_views(training.make_views, batch, key, mesh)})
            with _compiling(log, meter) if step == first_step else contextlib.nullcontext():
                state, metrics = _dispatch(training.step, step, state, batch, key)
            if step == first_step:
                # Only now there is something to save. Before, a signal ends the command at once.
                signals.enter_context(preemption)
            step += 1
            log.advance(step)
            meter.add(step, metrics, images=batch['mask'].size)

            is_preempted = preemption.is_due()
            is_saved = is_preempted or clock.is_due(step)
            # Before the state is saved: a checkpoint of a loss that is not finite would displace a good one.
            meter.check_finite(all_steps=is_saved)
            if schedule.is_due(schedule.log_every, step):
                _report(step, batches, meter, log)
            if is_saved:
                # After the log: a run that resumes here must find the rows up to this step.
                with meter.saving():
                    checkpoints.save(state)
                clock.reset()
            if is_preempted and step < schedule.total_steps:
                # Before the evaluation: a machine that is taken away leaves seconds, and the state comes first.
                checkpoints.wait()
                raise _preempted(preemption.number, step, schedule.total_steps)
            if training.evaluate and schedule.is_due(schedule.evaluate_every, step):
                with meter.paused():
                    scalars = training.evaluate(state)
                log.evaluation(step, scalars)
        checkpoints.wait()
    return state


class SaveClock:
    """Says when a checkpoint is due: after a number of steps, or of minutes, whichever comes first.

    Processes of a job have different clocks. The first one decides, at the steps of the log, so that it costs nothing.

    Args:
        schedule: Schedule of the run.
    """

    def __init__(self, schedule: Schedule):
        self._schedule = schedule
        self.reset()

    def reset(self) -> None:
        """Begins a new interval."""
        self._start = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint follows this step. All processes must ask after the same steps."""
        schedule = self._schedule
        if schedule.is_due(schedule.checkpoint_every, step):
            return True
        if not schedule.checkpoint_minutes:
            return False
        has_passed = time.monotonic() - self._start >= 60 * schedule.checkpoint_minutes
        if jax.process_count() == 1:
            return has_passed
        return schedule.is_due(schedule.log_every, step) and distributed.as_first(has_passed)


def _dispatch(
    train_step: Step, step: int, state: TrainState, batch: dict[str, jax.Array], key: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Starts a step without waiting for it: the devices work while the host reads the next batch.

    A value that travels between host and devices here would stop this, so that the guard refuses it.
    """
    with jax.profiler.StepTraceAnnotation('train', step_num=step + 1), jax.transfer_guard('disallow'):
        return train_step(state, batch, key)


def _preempted(number: signal.Signals, step: int, total_steps: int) -> Preempted:
    return Preempted(
        f'stopped by {number.name}: saved at step {step} of {total_steps}; the same command resumes there', number
    )


@contextlib.contextmanager
def _compiling(log: Log, meter: Meter) -> Iterator[None]:
    """Says that the first step is compiled, and leaves the time out of the rate and of the time left."""
    log.say('Compiling the training step.')
    start = time.perf_counter()
    with meter.paused():
        yield
    log.say(f'Compiled in {time.perf_counter() - start:.0f} s.')


def _first_views(make_views: MakeViews, batch: dict[str, jax.Array], key: jax.Array, mesh: Mesh) -> np.ndarray:
    """Views of the first images of the first step, [PICTURED * V, H, W, 3] in [0, 1]."""

    def first(batch, key):
        rows = jax.tree.map(lambda rows: rows[:PICTURED], batch)
        views = make_views(rows, jax.random.fold_in(key, 0))
        return views.reshape(-1, *views.shape[2:])

    return sharding.to_host(jax.jit(first, out_shardings=sharding.replicated(mesh))(batch, key))


def _report(step: int, batches: Iterator[FeedBatch], meter: Meter, log: Log) -> None:
    """Writes a row of the log, and names the files that could not be read since the last one."""
    log.progress(step, *meter.read())
    for path in getattr(batches, 'unreadable', []):
        if path not in meter.reported:
            log.say(SKIPPED.format(path))
            meter.reported.add(path)
