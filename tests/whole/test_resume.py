"""A run that is killed without warning and started again ends in the bits of an undisturbed one."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from support.encoders import make_workdir
from support.paths import REPOSITORY, SHARED
from support.runs import DIGITS, DIGITS_HERE, assert_same_bits, model_of, rows_of

ONE_DEVICE = {'cwd': REPOSITORY, 'env': {**os.environ, 'XLA_FLAGS': ''}}


def killed_and_resumed(arguments, workdir, last_step):
    """Starts a run, kills it without warning after a random step, starts it again until it ends."""
    command = [sys.executable, '-m', 'simclr_jax', 'train', *arguments, f'--workdir={workdir}']
    process = subprocess.Popen(command, **ONE_DEVICE, stdout=subprocess.DEVNULL)
    stop_at, metrics = random.randint(2, last_step - 3), workdir / 'metrics.jsonl'
    deadline = time.monotonic() + 200

    def has_come_far_enough():
        is_saved = any(path.name.isdigit() for path in (workdir / 'checkpoints').glob('*'))
        return is_saved and len(metrics.read_text().splitlines()) >= stop_at

    while not has_come_far_enough():
        assert process.poll() is None, 'the run ended before it was killed'
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = subprocess.run(command, **ONE_DEVICE, capture_output=True, text=True, check=True)
    return stop_at, again.stdout


def assert_killed_run_ends_the_same(arguments, tmp_path, last_step):
    command = [sys.executable, '-m', 'simclr_jax', 'train', *arguments, f'--workdir={tmp_path}/undisturbed']
    subprocess.run(command, **ONE_DEVICE, check=True, stdout=subprocess.DEVNULL)
    stopped_at, output = killed_and_resumed(arguments, tmp_path / 'killed', last_step)
    assert 'Resuming at step' in output, f'killed after step {stopped_at}: {output}'
    found, expected = (model_of(tmp_path / name) for name in ('killed', 'undisturbed'))
    assert found[1] == expected[1] == last_step
    assert_same_bits(found[0], expected[0])
    # The optimiser's state and the step too, by their checksums.
    checksums = [
        (tmp_path / name / 'checkpoints' / str(last_step) / 'meta' / 'metadata').read_text()
        for name in ('killed', 'undisturbed')
    ]
    assert checksums[0] == checksums[1]
    losses = [
        [(row['step'], row['loss']) for row in rows_of(tmp_path / name) if 'loss' in row]
        for name in ('killed', 'undisturbed')
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_digits_killed_at_a_random_step_end_the_same(tmp_path):
    options = [
        '--config.train_steps=14', '--config.log_every_steps=1', '--config.checkpoint_every_steps=2',
        '--config.knn.every_epochs=0',
    ]  # fmt: skip
    assert_killed_run_ends_the_same([*DIGITS, *options], tmp_path, last_step=14)


@pytest.mark.slow
def test_a_student_killed_with_a_queue_half_full_ends_the_same(tmp_path):
    """The queue has 512 rows, and a step brings 32 keys: it is never full."""
    teacher = make_workdir(tmp_path / 'teacher')
    options = [
        '--config.task=disco', f'--config.teacher.path={teacher}', '--config.loss.name=info_nce',
        '--config.batch_size=32', '--config.loss.queue_size=512', '--config.loss_scale=1', '--config.train_steps=12',
        '--config.log_every_steps=1', '--config.checkpoint_every_steps=2', '--config.knn.every_epochs=0',
    ]  # fmt: skip
    assert_killed_run_ends_the_same([*DIGITS_HERE, *options], tmp_path, last_step=12)


@pytest.mark.slow
def test_cifar_killed_at_a_random_step_ends_the_same(tmp_path):
    prepared = SHARED / 'data' / 'tfds'
    if not prepared.exists():
        pytest.skip(f'CIFAR-10 is not prepared at {prepared}')
    arguments = [
        f'--config={REPOSITORY}/configs/cifar10.py:cpu', f'--config.data.path={prepared}',
        '--config.model.width=0.125', '--config.batch_size=32', '--config.train_steps=12',
        '--config.log_every_steps=1', '--config.checkpoint_every_steps=2', '--config.knn.every_epochs=0',
    ]  # fmt: skip
    assert_killed_run_ends_the_same(arguments, tmp_path, last_step=12)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_sigterm_ends_an_evaluation_of_two_processes_and_keeps_its_scores(tmp_path):
    options = '--config.model.depth=6', '--config.train_steps=2', '--config.knn.every_epochs=0'
    program = [sys.executable, '-m', 'simclr_jax']
    subprocess.run([*program, 'train', *DIGITS, *options, f'--workdir={tmp_path}'], **ONE_DEVICE, check=True)
    evaluate = ['evaluate', f'--workdir={tmp_path}', '--protocols=knn,linear', '--labels=all']
    launcher = subprocess.Popen(
        [sys.executable, 'launch/processes.py', '--processes=2', *program, *evaluate],
        **ONE_DEVICE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = iter(launcher.stdout.readline, '')
    assert any('linear, all labels' in line for line in lines)
    launcher.send_signal(signal.SIGTERM)
    output = launcher.communicate(timeout=30)[0]
    assert launcher.returncode == 42, output
    assert 'simclr: stopped by SIGTERM; finished scores are in result.json' in output
    assert 'Traceback' not in output
    assert [score['protocol'] for score in json.loads((tmp_path / 'result.json').read_text())['scores']] == ['knn'] * 4
