"""Metrics of a run between two lines of its log, and where the time went."""

import collections
import contextlib
import math
import time
from collections.abc import Iterator
from typing import NoReturn

import jax
import numpy as np
import psutil

from simclr_jax.chips import peak_flops
from simclr_jax.metrics import representation
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.schedule import Schedule

# Steps whose metrics may still be on their way when the next step is dispatched.
STEPS_IN_FLIGHT = 2


class NotFiniteError(RuntimeError):
    """The loss or its gradient is not finite. The message names the step and the last good checkpoint."""


class Meter:
    """Collects metrics between two lines of the log, and measures where the time went.

    Args:
        schedule: Schedule of the run.
        checkpoints: Checkpoints of the run. An error message names the last good one.
        step_flops: Operations of a step on all devices together. 0 means unknown.

    Attributes:
        reported: Paths of unreadable files that the log has named.
    """

    def __init__(self, schedule: Schedule, checkpoints: Checkpoints, step_flops: float = 0.0):
        self._schedule, self._checkpoints, self._step_flops = schedule, checkpoints, step_flops
        self._learning_rate = jax.jit(schedule.learning_rate)
        self._unchecked = collections.deque()
        self.reported: set[str] = set()
        self._begin_interval()

    def _begin_interval(self) -> None:
        self._metrics, self._images = [], 0
        self._start, self._spent = time.perf_counter(), collections.defaultdict(float)

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """Counts the time of a block as waiting for data."""
        return self._spending('waiting')

    def saving(self) -> contextlib.AbstractContextManager[None]:
        """Counts the time of a block as taking a checkpoint."""
        return self._spending('saving')

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Leaves the time of a block out: it is not training."""
        return self._spending('paused')

    @contextlib.contextmanager
    def _spending(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent[what] += time.perf_counter() - start

    def add(self, step: int, metrics: dict[str, jax.Array], images: int) -> None:
        """Adds the metrics of a step. The devices may still be computing them.

        Args:
            step: Number of the step, counted from 1.
            metrics: Metrics of the step.
            images: Images of the step.
        """
        self._step = step
        self._metrics.append(metrics)
        self._unchecked.append((step, metrics))
        self._images += images

    def check_finite(self, all_steps: bool) -> None:
        """Raises NotFiniteError if the loss or gradient of a step is not finite.

        Args:
            all_steps: Whether to wait for the newest STEPS_IN_FLIGHT steps too.
        """
        while len(self._unchecked) > (0 if all_steps else STEPS_IN_FLIGHT):
            step, metrics = self._unchecked.popleft()
            for name in ('loss', 'gradient_norm'):
                if not math.isfinite(metrics[name]):
                    self._stop(name, float(metrics[name]), step)

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
        rows = jax.device_get(self._metrics)
        scalars = {'epoch': self._step / self._schedule.epoch_steps}
        for name in sorted(rows[-1].keys() - {'z_gram'}):
            values = np.array([row[name] for row in rows])
            # A step without any labelled image has no accuracy.
            known = values[~np.isnan(values)]
            if known.size:
                scalars[name] = float(np.mean(known))
        if 'z_gram' in rows[-1]:
            scalars['effective_rank'] = representation.effective_rank_from_gram(rows[-1]['z_gram'])
        scalars['learning_rate'] = float(self._learning_rate(self._step - 1))
        seconds = time.perf_counter() - self._start - self._spent['paused']
        scalars |= self._times(seconds) | {'memory_gib': _memory_gib()}
        seconds_left = seconds / len(rows) * (self._schedule.total_steps - self._step)
        self._begin_interval()
        return scalars, seconds_left

    def _times(self, seconds: float) -> dict[str, float]:
        """The rate, and the parts of a step's seconds: waiting for data, computing, taking a checkpoint."""
        steps, waited, saved = len(self._metrics), self._spent['waiting'], self._spent['saving']
        times = {
            'images_per_second': self._images / seconds,
            'step_seconds': seconds / steps,
            'data_wait_seconds': waited / steps,
            'compute_seconds': (seconds - waited - saved) / steps,
            'checkpoint_seconds': saved / steps,
            'data_wait_share': waited / seconds,
        }
        peak = peak_flops(jax.devices()[0].device_kind)
        if peak and self._step_flops:
            times['flops_utilization'] = self._step_flops * steps / seconds / (peak * jax.device_count())
        return times


def _memory_gib() -> float:
    """Peak memory of the first accelerator where the device reports it, otherwise this process's memory now."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get('peak_bytes_in_use', psutil.Process().memory_info().rss) / 2**30
