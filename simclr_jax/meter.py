"""Metrics of a run between two lines of its log, and where the time went."""

import collections
import dataclasses
import math
import time

import jax
import numpy as np
import optax
import psutil

from simclr_jax import measures
from simclr_jax.checkpoints import Checkpoints
from simclr_jax.chips import peak_flops

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


class Meter:
    """Metrics since the last line, and where the time went.

    Args:
        schedule: of the run.
        checkpoints: of the run, whose last good one a message is to name.
        step_flops: operations of a step on all devices together; 0: not known.
    """

    def __init__(self, schedule: Schedule, checkpoints: Checkpoints, step_flops: float = 0.0):
        self._schedule, self._checkpoints, self._step_flops = schedule, checkpoints, step_flops
        self._unchecked = collections.deque()
        self.told: set[str] = set()
        self._begin_interval()

    def _begin_interval(self) -> None:
        self._metrics, self._images = [], 0
        self._start, self._waited, self._saved, self._paused = time.perf_counter(), 0.0, 0.0, 0.0

    def waiting(self):
        """Time of this block is the accelerator waiting for data."""
        return _Stopwatch(self, '_waited')

    def saving(self):
        """Time of this block is a checkpoint being taken."""
        return _Stopwatch(self, '_saved')

    def paused(self):
        """Time of this block is not training."""
        return _Stopwatch(self, '_paused')

    def add(self, step: int, metrics: dict[str, jax.Array], images: int) -> None:
        """Metrics of a step, which may still be on their way, and the number of its images."""
        self._step = step
        self._metrics.append(metrics)
        self._unchecked.append((step, metrics))
        self._images += images

    def check_finite(self, all_steps: bool) -> None:
        """Raises NotFiniteError if the loss or gradient of a step so far is no number.

        Args:
            all_steps: wait for the last ones too.
        """
        while len(self._unchecked) > (0 if all_steps else STEPS_IN_FLIGHT):
            step, metrics = self._unchecked.popleft()
            for name in ('loss', 'gradient_norm'):
                value = float(metrics[name])
                if not math.isfinite(value):
                    self._checkpoints.wait()
                    latest = self._checkpoints.latest_step()
                    last = f'the last good checkpoint is of step {latest}' if latest is not None else 'none was saved'
                    raise NotFiniteError(
                        f'{name} is {value} at step {step}; stopped, and {last}. A lower '
                        'optimizer.learning_rate or a longer warm-up (warmup_epochs) usually helps'
                    )

    def read(self) -> tuple[dict[str, float], float]:
        """Means since the last call with times, rate and memory, and an estimate of the seconds left."""
        self.check_finite(all_steps=True)
        rows = jax.device_get(self._metrics)
        gram = rows[-1].pop('z_gram', None)
        scalars = {'epoch': self._step / self._schedule.epoch_steps}
        scalars |= {name: float(np.mean([row[name] for row in rows])) for name in rows[-1]}
        if gram is not None:
            scalars['effective_rank'] = measures.effective_rank_from_gram(gram)
        scalars['learning_rate'] = float(self._schedule.learning_rate(self._step - 1))
        seconds = time.perf_counter() - self._start - self._paused
        scalars |= self._times(seconds, len(rows)) | {'memory_gib': _memory_gib()}
        seconds_left = seconds / len(rows) * (self._schedule.total_steps - self._step)
        self._begin_interval()
        return scalars, seconds_left

    def _times(self, seconds: float, steps: int) -> dict[str, float]:
        """Rate, and what a step's seconds consist of: waiting for data, computing, taking a checkpoint."""
        times = {
            'images_per_second': self._images / seconds,
            'step_seconds': seconds / steps,
            'data_wait_seconds': self._waited / steps,
            'compute_seconds': (seconds - self._waited - self._saved) / steps,
            'checkpoint_seconds': self._saved / steps,
            'data_wait_share': self._waited / seconds,
        }
        peak = peak_flops(jax.devices()[0].device_kind)
        if peak and self._step_flops:
            times['flops_utilization'] = self._step_flops * steps / seconds / (peak * jax.device_count())
        return times


class _Stopwatch:
    def __init__(self, meter: Meter, name: str):
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
