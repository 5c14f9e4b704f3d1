"""The loop, with a step that only counts: signals, and checkpoints after minutes."""

import json
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simclr_jax import sharding
from simclr_jax.training import loop
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.log import Log, _Bar
from simclr_jax.training.loop import Preempted, SaveClock, Training
from simclr_jax.training.schedule import Schedule
from simclr_jax.training.state import TrainState

STEPS = 12


@pytest.fixture(scope='module')
def mesh():
    return sharding.make_mesh(jax.devices()[:1])


@pytest.fixture(scope='module')
def counting_step():
    @jax.jit
    def step(state, batch, key):
        loss = jnp.float32(1)
        return state.replace(step=state.step + 1), {'loss': loss, 'gradient_norm': loss}

    return step


def train(directory, mesh, step, *, after=lambda step: None, minutes=0.0, start=0, log=None):
    """Runs to step 12 with checkpoints after steps 5 and 10. `after` is called when a batch is asked for."""

    def batches(first):
        for number in range(first, STEPS):
            after(number)
            yield {'views': np.zeros((2, 2, 4, 4, 3), np.float32), 'mask': np.ones(2, np.float32)}

    training = Training(
        step=step,
        batches=batches,
        schedule=Schedule(STEPS, 1.0, 1, 5, 0, optax.constant_schedule(0.1), checkpoint_minutes=minutes),
        mesh=mesh,
        key=jax.random.key(0),
    )
    state = TrainState(jnp.asarray(start, jnp.int32), {'w': jnp.ones(2)}, {}, {})
    checkpoints = Checkpoints(str(directory), keep=20)
    try:
        return loop.train(
            jax.device_put(state, sharding.replicated(mesh)), training, checkpoints, log or Log(None, STEPS)
        )
    finally:
        checkpoints.close()


def saved_in(directory):
    return sorted(int(path.name) for path in (directory / 'checkpoints').iterdir())


def test_compilation_is_announced_and_left_out_of_the_rate(tmp_path, mesh, counting_step, capsys):
    compiled = []

    def step(*arguments):
        if not compiled:
            compiled.append(time.sleep(2))
        return counting_step(*arguments)

    train(tmp_path, mesh, step, log=Log(str(tmp_path), STEPS))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ['Compiling the training step.', 'Compiled in 2 s.']
    assert lines[2].startswith('step 1/12 ')
    first = json.loads((tmp_path / 'metrics.jsonl').read_text().splitlines()[0])
    assert first['step'] == 1
    assert first['step_seconds'] < 1


def test_a_step_that_moves_a_value_between_host_and_devices_is_refused(tmp_path, mesh, counting_step):
    add = jax.jit(jnp.add)

    def step(state, batch, key):
        return counting_step(state.replace(step=add(state.step, np.int32(0))), batch, key)

    with pytest.raises(Exception, match='Disallowed host-to-device transfer'):
        train(tmp_path, mesh, step)


def test_the_bar_moves_at_each_step_and_its_clock_starts_after_the_first(mesh, monkeypatch):
    clock = [0.0]
    bar = _Bar(total_steps=12)
    monkeypatch.setattr(bar._progress, 'get_time', lambda: clock[0])
    (task,) = bar._progress.tasks
    task._get_time = lambda: clock[0]
    bar.resume(4)
    found = []
    for step, now in ((5, 100.0), (6, 102.0), (7, 104.0)):
        clock[0] = now
        bar.advance(step)
        found.append((task.completed, task.elapsed, task.time_remaining))
    bar.close()
    assert found == [(5, 0, None), (6, 2, 12), (7, 4, 10)]


def at(step, action):
    return lambda number: action() if number == step else None


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_ends(tmp_path, mesh, counting_step, number):
    handler = signal.getsignal(number)
    with pytest.raises(Preempted, match=f'stopped by {number.name}: saved at step 8 of 12; the same command') as caught:
        train(tmp_path, mesh, counting_step, after=at(7, lambda: os.kill(os.getpid(), number)))
    assert caught.value.number == number
    assert saved_in(tmp_path) == [5, 8]
    assert signal.getsignal(number) == handler


def test_a_second_signal_ends_at_once(tmp_path, mesh, counting_step, monkeypatch):
    """For Python that is the interruption that it knows. `simclr` ends its process, see cli/test_stopping.py."""
    clock = [0.0]
    monkeypatch.setattr('simclr_jax.distributed.time.monotonic', lambda: clock[0])

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # Both at the same time count once.
        clock[0] += 2
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, mesh, counting_step, after=at(3, twice))
    assert saved_in(tmp_path) == []


def test_before_the_first_step_a_signal_is_not_kept_for_later(tmp_path, mesh, counting_step):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, mesh, counting_step, after=at(0, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert saved_in(tmp_path) == []


def test_a_signal_at_the_last_step_is_too_late(tmp_path, mesh, counting_step):
    state = train(tmp_path, mesh, counting_step, after=at(11, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert (int(state.step), saved_in(tmp_path)) == (12, [5, 10, 12])


def test_a_thread_trains_without_signals(tmp_path, mesh, counting_step):
    found = []
    thread = threading.Thread(target=lambda: found.append(train(tmp_path, mesh, counting_step)))
    thread.start()
    thread.join()
    assert [int(state.step) for state in found] == [12]


def test_minutes_save_between_the_intervals_of_steps(tmp_path, mesh, counting_step, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loop.time, 'monotonic', lambda: clock[0])

    def after(number):
        clock[0] += 60.0

    train(tmp_path, mesh, counting_step, after=after, minutes=3.0)
    # Three minutes after the last checkpoint, whatever it was due for.
    assert saved_in(tmp_path) == [3, 5, 8, 10, 12]


def test_processes_of_a_job_follow_the_clock_of_the_first_at_steps_of_the_log(monkeypatch):
    asked = []
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(loop.distributed, 'as_first', lambda statement: not asked.append(statement))
    schedule = Schedule(100, 1.0, 4, 50, 0, optax.constant_schedule(0.1), checkpoint_minutes=1e-9)
    clock = SaveClock(schedule)
    assert [step for step in range(1, 10) if clock.is_due(step)] == [4, 8]
    assert len(asked) == 2
