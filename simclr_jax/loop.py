"""The story of a training run: steps, logs, online evaluation, checkpoints. Knows no model."""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
import optax
import psutil
from jax.sharding import Mesh

from simclr_jax import measures, parallel
from simclr_jax.checkpoints import Checkpoints
from simclr_jax.data.spec import Batch
from simclr_jax.log import Log
from simclr_jax.state import TrainState
from simclr_jax.step import Step

# Steps whose metrics may still be on their way when the next one is started.
STEPS_IN_FLIGHT = 2


class NotFiniteError(RuntimeError):
    """The loss or its gradient is no number any more; the message names the step and the last good checkpoint."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Lengths of a run, in steps.

    Attributes:
        total_steps: updates.
        epoch_steps: updates an epoch, a fraction.
        log_every, checkpoint_every: intervals; both also happen at the end.
        evaluate_every: interval of the online evaluation, which also happens at the end; 0: never.
        learning_rate: of the update after so many.
    """

    total_steps: int
    epoch_steps: float
    log_every: int
    checkpoint_every: int
    evaluate_every: int
    learning_rate: optax.Schedule


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
) -> TrainState:
    """Trains from `state.step` to `schedule.total_steps`.

    Args:
        state: where to begin; it is donated to the first step.
        train_step: see step.make_train_step.
        batches_from: step -> the host's batches from that step on.
        schedule: lengths and intervals.
        mesh: the devices.
        key: of the steps' randomness.
        checkpoints: where the state is saved.
        log: where metrics go.
        evaluate: online evaluation, state -> scalars.

    Returns:
        The last state, which is saved.

    Raises:
        NotFiniteError: at most STEPS_IN_FLIGHT steps after the loss stopped being a number.
    """
    step = int(state.step)
    if step >= schedule.total_steps:
        log.say(f'Step {step} of {schedule.total_steps} is reached already.')
        return state
    batches = batches_from(step)
    meter = _Meter(schedule)
    while step < schedule.total_steps:
        with meter.waiting():
            host_batch = next(batches)
        if step == 0:
            log.images(0, {'views': np.concatenate(host_batch['views'][:8])})
        state, metrics = train_step(state, parallel.to_global(host_batch, mesh), key)
        step += 1
        meter.add(step, metrics, images=len(host_batch['mask']) * jax.process_count())

        is_last = step == schedule.total_steps
        meter.check_finite(checkpoints, all_steps=is_last or step % schedule.checkpoint_every == 0)
        if is_last or step % schedule.log_every == 0:
            scalars, seconds_left = meter.read(checkpoints)
            log.progress(step, scalars, seconds_left)
            _tell_unreadable(batches, log, meter)
        if is_last or step % schedule.checkpoint_every == 0:
            with meter.paused():
                checkpoints.save(state)
        if evaluate and schedule.evaluate_every and (is_last or step % schedule.evaluate_every == 0):
            with meter.paused():
                scalars = evaluate(state)
            log.scalars(step, scalars)
            log.say(f'step {step}/{schedule.total_steps}  ' + '  '.join(f'{k} {v:.2%}' for k, v in scalars.items()))
    checkpoints.wait()
    return state


def _tell_unreadable(batches: Iterator[Batch], log: Log, meter: '_Meter') -> None:
    paths = getattr(batches, 'unreadable', [])
    for path in paths:
        if path not in meter.told:
            log.say(f'No readable image, skipped: {path}')
            meter.told.add(path)


class _Meter:
    """Metrics since the last line, and where the time went."""

    def __init__(self, schedule: Schedule):
        self._schedule = schedule
        self._unchecked = collections.deque()
        self.told: set[str] = set()
        self._begin_interval()

    def _begin_interval(self) -> None:
        self._metrics, self._images = [], 0
        self._start, self._waited, self._paused = time.perf_counter(), 0.0, 0.0

    def waiting(self):
        """Time of this block is the accelerator waiting for data."""
        return _Stopwatch(self, '_waited')

    def paused(self):
        """Time of this block is not training."""
        return _Stopwatch(self, '_paused')

    def add(self, step: int, metrics: dict[str, jax.Array], images: int) -> None:
        self._step = step
        self._metrics.append(metrics)
        self._unchecked.append((step, metrics))
        self._images += images

    def check_finite(self, checkpoints: Checkpoints, all_steps: bool) -> None:
        while len(self._unchecked) > (0 if all_steps else STEPS_IN_FLIGHT):
            step, metrics = self._unchecked.popleft()
            for name in ('loss', 'gradient_norm'):
                value = float(metrics[name])
                if not math.isfinite(value):
                    checkpoints.wait()
                    latest = checkpoints.latest_step()
                    last = f'the last good checkpoint is of step {latest}' if latest is not None else 'none was saved'
                    raise NotFiniteError(
                        f'{name} is {value} at step {step}; stopped, and {last}. A lower '
                        'optimizer.learning_rate or a longer warm-up (warmup_epochs) usually helps'
                    )

    def read(self, checkpoints: Checkpoints) -> tuple[dict[str, float], float]:
        """Means since the last call with rate and memory, and an estimate of the seconds left."""
        self.check_finite(checkpoints, all_steps=True)
        rows = jax.device_get(self._metrics)
        gram = rows[-1].pop('z_gram', None)
        scalars = {'epoch': self._step / self._schedule.epoch_steps}
        scalars |= {name: float(np.mean([row[name] for row in rows])) for name in rows[-1]}
        if gram is not None:
            scalars['effective_rank'] = measures.effective_rank_from_gram(gram)
        scalars['learning_rate'] = float(self._schedule.learning_rate(self._step - 1))
        seconds = time.perf_counter() - self._start - self._paused
        scalars['images_per_second'] = self._images / seconds
        scalars['data_wait_seconds'] = self._waited
        scalars['data_wait_share'] = self._waited / seconds
        scalars['memory_gib'] = _memory_gib()
        seconds_left = seconds / len(rows) * (self._schedule.total_steps - self._step)
        self._begin_interval()
        return scalars, seconds_left


class _Stopwatch:
    def __init__(self, meter: _Meter, name: str):
        self._meter, self._name = meter, name

    def __enter__(self):
        self._start = time.perf_counter()

    def __exit__(self, *error):
        spent = time.perf_counter() - self._start
        setattr(self._meter, self._name, getattr(self._meter, self._name) + spent)


def _memory_gib() -> float:
    """At its peak on the first accelerator where it tells, of this process now otherwise."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get('peak_bytes_in_use', psutil.Process().memory_info().rss) / 2**30
