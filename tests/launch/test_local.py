"""launch/local.sh as a small pod: several processes that know of each other, one end, one exit code."""

import shutil
import socket
import sys
import time

import pytest

from support.runs import DIGITS, rows_of
from support.stand_ins import AWKWARD, REPOSITORY, World, checkout, executable


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def script(root):
    return root / 'launch' / 'local.sh'


def test_every_process_knows_its_place_and_has_the_arguments(world, script):
    done = world.run(script, '--processes=3', '--devices=2', *AWKWARD)
    assert (done.returncode, done.stderr) == (0, '')
    runs = sorted(world.records('runs'), key=lambda run: run['process'])
    assert [run['arguments'] for run in runs] == [AWKWARD] * 3
    (address,) = {run['variables'].pop('JAX_COORDINATOR_ADDRESS') for run in runs}
    assert [run['variables'] for run in runs] == [
        {'JAX_NUM_PROCESSES': '3', 'JAX_PROCESS_ID': f'{index}', 'JAX_NUM_CPU_DEVICES': '2', 'JAX_PLATFORMS': 'cpu'}
        for index in range(3)
    ]
    host, port = address.split(':')
    assert host == '127.0.0.1'
    with socket.socket() as probe:  # nobody else has it
        probe.bind((host, int(port)))


def test_two_pods_at_a_time_do_not_meet(world, script):
    for _ in range(2):
        world.run(script, '--processes=1', 'train')
    addresses = [run['variables']['JAX_COORDINATOR_ADDRESS'] for run in world.records('runs')]
    assert len(set(addresses)) == 2


def test_another_platform_is_kept(world, script):
    world.run(script, '--processes=1', 'train', JAX_PLATFORMS='cuda')
    (run,) = world.records('runs')
    assert run['variables']['JAX_PLATFORMS'] == 'cuda'
    assert 'JAX_NUM_CPU_DEVICES' not in run['variables']


def test_lines_of_all_but_the_first_process_begin_with_its_number(world, script):
    world.plan(p0=[0], p1=[0], p2=[0])
    lines = sorted(world.run(script, '--processes=3', 'train').stdout.splitlines())
    assert lines == ['[1] process 1, run 0: 0', '[2] process 2, run 0: 0', 'process 0, run 0: 0']


@pytest.mark.parametrize(
    'end, code, message',
    [
        (2, 2, 'process 1 ended with exit code 2; stopping the others'),
        (42, 42, 'process 1 ended with exit code 42; stopping the others'),
        ('kill', 137, 'process 1 was killed by SIGKILL; stopping the others'),
    ],
)
def test_the_first_process_that_ends_badly_decides(world, script, end, code, message):
    world.plan(p0=['save'], p1=[end], p2=['save'])
    done = world.run(script, '--processes=3', 'train')
    assert done.returncode == code
    assert done.stderr.splitlines() == [f'launch/local.sh: {message}']


@pytest.mark.slow
@pytest.mark.parametrize('other', ['hang', 'freeze'])
def test_processes_that_do_not_stop_are_killed(world, script, other):
    world.plan(p0=[other], p1=['last'], p2=['save'])
    begin = time.monotonic()
    done = world.run(script, '--processes=3', 'train')
    assert 10 <= time.monotonic() - begin < 30
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == 'launch/local.sh: process 0 did not stop within 10 s: killed'


def test_processes_that_ignore_the_signal_of_the_user_are_killed(world, script):
    world.plan(p0=['hang'], p1=['save'])
    processes = script.parent / 'processes.py'
    processes.write_text(processes.read_text().replace('_STOP_SECONDS = 120.0', '_STOP_SECONDS = 1.0'))
    with world.start(script, '--processes=2', 'train') as process:
        wait_for_start(process, 2)
        process.terminate()
        assert process.wait(timeout=20) == 42
        assert process.stderr.read().endswith('launch/local.sh: process 0 did not stop within 1 s: killed\n')


@pytest.mark.parametrize('options', [('--processes=2',), ('--processes=2', '--restarts=1'), ('--restarts=1',)])
def test_the_program_does_not_outlive_a_killed_launcher(world, script, options):
    """It ends by SIGTERM, so it could save."""
    world.plan(p0=['save'], p1=['save'])
    with world.start(script, *options, 'train') as process:
        wait_for_start(process, 2 if '--processes=2' in options else 1)
        process.kill()
        # The programs hold the other ends of these pipes.
        assert process.communicate(timeout=20)[0] == ''


def wait_for_start(process, processes):
    seen = [process.stdout.readline() for _ in range(2 * processes)]
    assert sum('waiting' in line for line in seen) == processes


@pytest.mark.parametrize('restarts', [(), ('--restarts=3',)])
def test_a_signal_goes_to_all_processes_and_nothing_is_started_again(world, script, restarts):
    world.plan(p0=['save'], p1=['save'])
    with world.start(script, '--processes=2', *restarts, 'train') as process:
        wait_for_start(process, 2)
        process.terminate()
        assert process.wait(timeout=20) == 42
    assert len(world.records('runs')) == 2


def test_a_second_signal_kills(world, script):
    world.plan(p0=['hang'], p1=['hang'])
    with world.start(script, '--processes=2', 'train') as process:
        wait_for_start(process, 2)
        process.terminate()
        time.sleep(0.5)
        assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=8) == 137


def test_restarts_start_the_whole_pod_again(world, script):
    world.plan(p0=[0], p1=['kill', 0])
    done = world.run(script, '--processes=2', '--restarts=1', 'train')
    assert done.returncode == 0
    assert [run['run'] for run in world.records('runs') if run['process'] == '1'] == [0, 1]
    assert world.records('runs')[-1]['variables']['JAX_NUM_PROCESSES'] == '2'


def test_without_restarts_it_runs_once(world, script):
    world.plan(p0=[42])
    assert world.run(script, '--processes=1', 'train').returncode == 42
    assert world.run(script, 'train').returncode == 42
    assert len(world.records('runs')) == 2


def test_one_process_with_several_devices(world, script):
    world.run(script, '--devices=4', 'train')
    (run,) = world.records('runs')
    assert run['variables']['JAX_NUM_CPU_DEVICES'] == '4'
    assert run['variables']['JAX_NUM_PROCESSES'] == '1'


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('--processes=0', 'train'), "argument --processes: '0' must be a whole number > 0"),
        (('--processes=2', '--devices=two', 'train'), "argument --devices: 'two' must be a whole number > 0"),
        (('--processes=2',), 'these options need arguments for simclr'),
        (('--processes=2', '--restarts=x', 'train'), '--restarts=x must be a whole number'),
        (('--extra=cuda', 'train'), '--extra=cuda must be cuda12, cuda13, tpu or gcs'),
    ],
)
def test_mistakes_are_told(world, script, arguments, message):
    done = world.run(script, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert world.records('runs') == []


@pytest.mark.parametrize(
    'name, words', [('local.sh', '--processes=N'), ('test.sh', '-m slow'), ('matrix.sh', 'oldest')]
)
def test_help_installs_nothing(world, tmp_path, name, words):
    root = checkout(tmp_path)
    shutil.rmtree(root / '.venv')
    done = world.run(root / 'launch' / name, '--help')
    assert (done.returncode, done.stderr) == (0, '')
    assert words in done.stdout
    assert not (root / '.venv').exists()


def test_options_of_the_program_are_left_to_it(world, script):
    world.run(script, '--version')
    assert world.records('runs')[0]['arguments'] == ['--version']


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_train_together(world, tmp_path):
    root = checkout(tmp_path)
    executable(root / '.venv' / 'bin' / 'simclr', f'exec {sys.executable} -m simclr_jax "$@"')
    arguments = [*DIGITS, f'--workdir={tmp_path}/run', '--config.train_steps=4', '--config.log_every_steps=2']
    arguments += ['--config.knn.every_epochs=0']
    options = '--processes=2', '--devices=1'
    script = root / 'launch' / 'local.sh'
    done = world.run(script, *options, 'train', *arguments, PYTHONPATH=str(REPOSITORY), timeout=500)
    assert done.returncode == 0, done.stderr
    assert 'on 2 x cpu' in done.stdout
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith('step ')] == ['2/4', '4/4']
    assert not any(line.startswith('[1] step') for line in done.stdout.splitlines())
    assert [row['step'] for row in rows_of(tmp_path / 'run')] == [2, 4]
