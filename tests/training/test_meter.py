"""What the log tells of a step's time and of the devices' use, and profiles of chosen steps."""

import math
import time

import jax
import numpy as np
import pytest

from simclr_jax import chips
from simclr_jax.training import meter
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.meter import Meter, NotFiniteError
from simclr_jax.training.profile import Profile
from simclr_jax.training.schedule import Schedule

# Of projections that spread over one, two and three dimensions.
GRAMS = np.stack([np.diag(np.float32(np.arange(3) <= n)) for n in range(3)])


@pytest.mark.parametrize(
    'kind, peak',
    [
        ('TPU v4', 275e12),
        ('TPU v5 lite', 197e12),
        ('TPU v5', 459e12),
        ('NVIDIA H100 80GB HBM3', 989e12),
        ('NVIDIA A100-SXM4-40GB', 312e12),
        ('Tesla V100-SXM2-16GB', 125e12),
        ('cpu', None),
        ('TPU v99', None),
    ],
)
def test_peak_by_the_names_that_jax_gives(kind, peak):
    assert chips.peak_flops(kind) == peak


def test_seconds_of_a_step_are_waiting_computing_and_saving(monkeypatch):
    monkeypatch.setattr(meter, 'peak_flops', lambda kind: 1e9)
    schedule = Schedule(100, 10.0, 1, 10, 0, learning_rate=lambda step: 0.5)
    clock = Meter(schedule, checkpoints=None, step_flops=1e8)
    with clock.waiting():
        time.sleep(0.2)
    time.sleep(0.1)
    with clock.saving():
        time.sleep(0.05)
    with clock.paused():
        time.sleep(0.5)
    for step in (1, 2):
        clock.add(step, {'loss': np.float32(step), 'gradient_norm': np.float32(1)}, images=8)
    scalars, seconds_left = clock.read()
    assert scalars['loss'] == 1.5
    # Sleeping takes at least as long as asked; a busy machine adds to it.
    assert 0.1 <= scalars['data_wait_seconds'] < 0.2
    assert 0.025 <= scalars['checkpoint_seconds'] < 0.1
    assert 0.05 <= scalars['compute_seconds'] < 0.15
    parts = ('data_wait_seconds', 'compute_seconds', 'checkpoint_seconds')
    assert scalars['step_seconds'] == pytest.approx(sum(scalars[part] for part in parts))
    assert scalars['images_per_second'] == pytest.approx(8 / scalars['step_seconds'])
    expected = 1e8 / scalars['step_seconds'] / (1e9 * jax.device_count())
    assert scalars['flops_utilization'] == pytest.approx(expected)
    assert seconds_left == pytest.approx(98 * scalars['step_seconds'])


def test_steps_that_do_not_know_a_metric_do_not_count():
    clock = Meter(Schedule(100, 10.0, 1, 10, 0, learning_rate=lambda step: 0.5), checkpoints=None)
    for step, accuracy in enumerate([np.nan, 0.5, 1.0], start=1):
        metrics = {'loss': np.float32(1), 'gradient_norm': np.float32(1), 'accuracy': np.float32(accuracy)}
        clock.add(step, metrics | {'teacher_accuracy': np.float32(np.nan)}, images=8)
    scalars, _ = clock.read()
    assert scalars['accuracy'] == 0.75
    assert 'teacher_accuracy' not in scalars


def test_means_are_over_steps_and_a_loss_that_is_not_finite_stops(tmp_path):
    schedule = Schedule(100, 10.0, 1, 10, 0, learning_rate=lambda step: 0.5)
    clock = Meter(schedule, Checkpoints(str(tmp_path), say=print))

    def add(first, losses):
        for step, (loss, gram) in enumerate(zip(losses, GRAMS, strict=False), start=first):
            metrics = {'loss': np.float32(loss), 'gradient_norm': np.float32(1), 'z_gram': gram}
            clock.add(step, metrics, images=8)

    add(1, [1, 2, 3])
    add(4, [4, 10])
    scalars, _ = clock.read()
    assert scalars['loss'] == 4.0
    assert scalars['images_per_second'] == pytest.approx(8 / scalars['step_seconds'])
    # The rank of the last step.
    assert scalars['effective_rank'] == pytest.approx(2.0)
    add(6, [1, math.nan, math.inf])
    # Steps 7 and 8 may still be on their way.
    clock.check_finite(all_steps=False)
    with pytest.raises(NotFiniteError, match='loss is nan at step 7; stopped, and none was saved'):
        clock.check_finite(all_steps=True)


@pytest.mark.parametrize('steps, recorded', [((2, 3), True), (None, False), ((9, 9), False)])
def test_chosen_steps_are_profiled(tmp_path, steps, recorded):
    work = jax.jit(lambda x: x @ x)
    with Profile(steps, str(tmp_path)) as profile:
        for step in range(1, 5):
            profile.before(step)
            work(np.ones((8, 8), np.float32)).block_until_ready()
    assert any(tmp_path.rglob('*.xplane.pb')) == recorded
