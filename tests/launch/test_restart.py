"""launch/restart.sh: what it starts again, how often, after which pauses, and what signals do to it."""

import os
import shutil
import signal
import time

import pytest

from support.stand_ins import AWKWARD, BASH, REPOSITORY, World

RESTART = REPOSITORY / 'launch' / 'restart.sh'
# What runs in the background of a shell ignores SIGINT, and what nohup starts SIGHUP. They hand that down, and a shell
# cannot trap what it ignored from the start.
HEEDING = (shutil.which('env'), '--default-signal=INT,HUP')


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def program(root):
    return root / '.venv' / 'bin' / 'simclr'


@pytest.mark.parametrize('code', [0, 1, 2, 3, 127])
def test_ends_that_a_restart_does_not_mend(world, program, code):
    world.plan(p0=[code])
    done = world.run(RESTART, str(program))
    assert (done.returncode, done.stderr) == (code, '')
    assert len(world.records('runs')) == 1


@pytest.mark.parametrize('end, code', [(42, 42), ('kill', 137)])
def test_ends_that_it_mends(world, program, end, code):
    world.plan(p0=[end, end, 0])
    done = world.run(RESTART, str(program), *AWKWARD)
    assert done.returncode == 0
    assert [run['arguments'] for run in world.records('runs')] == [AWKWARD] * 3
    assert f'exit code {code}; restart 2 of 20 in 0 s' in done.stderr


def test_a_mistake_in_a_later_run_ends_it(world, program):
    world.plan(p0=[42, 2])
    assert world.run(RESTART, str(program)).returncode == 2
    assert len(world.records('runs')) == 2


@pytest.mark.parametrize('restarts', [0, 2])
def test_restarts_have_a_limit(world, program, restarts):
    world.plan(p0=[42])
    done = world.run(RESTART, f'--restarts={restarts}', str(program))
    assert done.returncode == 42
    assert len(world.records('runs')) == restarts + 1
    assert f'all {restarts} restarts are used up' in done.stderr


def test_the_pause_doubles(world, program):
    world.plan(p0=[42, 42, 0])
    begin = time.monotonic()
    done = world.run(RESTART, '--pause=1', str(program))
    assert time.monotonic() - begin >= 3
    assert [line.rpartition(' in ')[2] for line in done.stderr.splitlines()] == ['1 s', '2 s']


def test_a_run_that_lasted_resets_the_count(world, program):
    world.plan(p0=[42, 42, 42, 0])
    done = world.run(RESTART, '--restarts=1', '--lasting=0', str(program))
    assert done.returncode == 0
    assert done.stderr.count('restart 1 of 1 in') == 3


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_goes_to_the_program_and_its_end_is_the_end(world, program, number):
    world.plan(p0=['save'])
    with world.start(*HEEDING, RESTART, program) as process:
        assert process.stdout.readline() == 'process 0, run 0: save\n'
        assert process.stdout.readline() == 'waiting\n'
        process.send_signal(number)
        assert (process.wait(timeout=20), process.stderr.read()) == (42, '')
    assert len(world.records('runs')) == 1


def test_an_interruption_reaches_the_program_as_one(world):
    program = 'trap "echo interrupted; exit 5" INT; echo ready; while :; do sleep 0.1; done'
    with world.start(*HEEDING, RESTART, BASH, '-c', program) as process:
        assert process.stdout.readline() == 'ready\n'
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == 'interrupted\n'
        assert process.wait(timeout=20) == 5


def test_an_interruption_before_the_number_of_the_program_is_known(world):
    """Bash waits half a second before it keeps the number. Meanwhile the signal comes, from the program itself."""
    slow = world.state / 'slow.sh'
    slow.write_text("set -T; trap '[[ $BASH_COMMAND != child=?* ]] || sleep 0.5' DEBUG")
    program = 'trap "exit 5" INT; trap "exit 6" TERM; kill -s INT $PPID; while :; do sleep 0.1; done'
    done = world.run(*HEEDING, RESTART, BASH, '-c', program, BASH_ENV=str(slow))
    assert (done.returncode, done.stderr) == (5, '')


def test_a_signal_in_the_pause_ends_it_with_the_code_of_the_last_run(world, program):
    world.plan(p0=[42])
    with world.start(RESTART, '--pause=30', program) as process:
        assert 'in 30 s' in process.stderr.readline()
        process.terminate()
        assert process.wait(timeout=20) == 42
    assert len(world.records('runs')) == 1


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('--restarts=many', 'true'), '--restarts=many must be a whole number'),
        (('--restart=3', 'true'), 'there is no option --restart=3'),
        ((), 'give a command to run'),
    ],
)
def test_mistakes_are_told(world, arguments, message):
    done = world.run(RESTART, *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_help_is_the_head_of_the_script(world):
    done = world.run(RESTART, '--help')
    assert done.returncode == 0
    assert '--restarts=N' in done.stdout
    assert 'shellcheck' not in done.stdout
    assert not any(line.startswith('#') for line in done.stdout.splitlines())
    assert os.access(RESTART, os.X_OK)
