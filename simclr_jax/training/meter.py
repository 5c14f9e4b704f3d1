"""Metrics of a run between two lines of its log, and where the time went."""

import collections
import math
import time
from typing import NoReturn

import jax
import numpy as np
import psutil

from simclr_jax.chips import peak_flops
from simclr_jax.metrics import representation
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.schedule import Schedule

# Steps whose metrics may still be on their way when the next one is started.
STEPS_IN_FLIGHT = 2


class NotFiniteError(RuntimeError):
    """The loss or its gradient is no number any more; the message names the step and the last good checkpoint."""


class Meter:
    """Metrics since the last line, and where the time went.

    Args:
        schedule: of the run.
        checkpoints: of the run, whose last good one a message is to name.
        step_flops: operations of a step on all devices together; 0: not known.
    """

    def __init__(self, schedule: Schedule, checkpoints: Checkpoints, step_flops: float = 0.0):
        self._schedule, self._checkpoints, self._step_flops = schedule, checkpoints, step_flops
        self._learning_rate = jax.jit(schedule.learning_rate)
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

    def add(self, step: int, metrics: dict[str, jax.Array], images: int, count: int = 1) -> None:
        """Metrics of a step, or stacked those of `count` steps up to that; they may still be on their way.

        Args:
            step: the last one.
            metrics: of the step, or [n, ...] each with the first `count` filled.
            images: of all these steps.
            count: steps.
        """
        self._step = step
        self._metrics.append((metrics, count))
        self._unchecked.append((step, metrics, count))
        self._images += images

    def check_finite(self, all_steps: bool) -> None:
        """Raises NotFiniteError if the loss or gradient of a step so far is no number.

        Args:
            all_steps: wait for the last orders too.
        """
        while len(self._unchecked) > (0 if all_steps else STEPS_IN_FLIGHT):
            last, metrics, count = self._unchecked.popleft()
            values = {name: np.atleast_1d(metrics[name])[:count] for name in ('loss', 'gradient_norm')}
            for n in range(count):
                for name, rows in values.items():
                    if not math.isfinite(rows[n]):
                        self._stop(name, rows[n], last - count + 1 + n)

    def _stop(self, name: str, value: float, step: int) -> NoReturn:
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
        rows = _rows_of_steps(jax.device_get(self._metrics))
        gram = rows.pop('z_gram', None)
        scalars = {'epoch': self._step / self._schedule.epoch_steps}
        scalars |= {name: float(np.mean(values)) for name, values in rows.items()}
        if gram is not None:
            scalars['effective_rank'] = representation.effective_rank_from_gram(gram[-1])
        scalars['learning_rate'] = float(self._learning_rate(self._step - 1))
        seconds = time.perf_counter() - self._start - self._paused
        steps = sum(count for _, count in self._metrics)
        scalars |= self._times(seconds, steps) | {'memory_gib': _memory_gib()}
        seconds_left = seconds / steps * (self._schedule.total_steps - self._step)
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


def _rows_of_steps(orders: list[tuple[dict[str, np.ndarray], int]]) -> dict[str, list[np.ndarray]]:
    """Metrics of all steps: a list by the step for each name."""

    def rows(name: str):
        for metrics, count in orders:
            values = metrics[name]
            # The loss of a single step is a scalar.
            yield from values[:count] if np.ndim(metrics['loss']) else [values]

    return {name: list(rows(name)) for name in orders[-1][0]}


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
