"""launch/slurm/: jobs from submission to their last end, with stand-ins for sbatch, srun and scontrol."""

import time

import pytest

from support.stand_ins import AWKWARD, World

TWO_TASKS = ('--nodes=2', '--gpus=1')


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, 'sbatch', 'srun', 'scontrol')


@pytest.fixture
def submit(root, world):
    script = root / 'launch' / 'slurm' / 'submit.sh'
    return lambda *arguments: world.run(script, *arguments)


def end(world):
    return world.records('calls')[-1][1]


def runs_of(world, process):
    return [run['run'] for run in world.records('runs') if run['process'] == process]


def test_a_job_runs_in_every_task_with_its_arguments_unchanged(world, submit):
    done = submit('--nodes=2', '--gpus=2', *AWKWARD)
    assert (done.returncode, done.stdout, end(world)) == (0, '7\n', 0), done.stderr
    assert sorted(run['process'] for run in world.records('runs')) == ['0', '1', '2', '3']
    assert all(run['arguments'] == AWKWARD for run in world.records('runs'))
    assert (world.state / 'simclr-7.log').read_text().count('run 0: 0') == 4


def test_one_process_a_gpu_or_one_a_node(world, submit):
    submit('--nodes=1', '--gpus=4', '--cpus=6', 'train')
    submit('--nodes=1', '--gpus=0', 'train')
    with_gpus, without = [call for call in world.records('calls') if call[0] == 'sbatch']
    assert {'--ntasks-per-node=4', '--gpus-per-node=4', '--cpus-per-task=6'} < set(with_gpus)
    assert '--ntasks-per-node=1' in without
    assert not any('--gpus' in word for word in without)


def test_options_of_sbatch_and_variables_pass_through(world, submit):
    submit('--nodes=1', '--gpus=0', '--platform=--partition=big one', '--env=JAX_NOTE=two words, $HOME', 'train')
    assert '--partition=big one' in world.records('calls')[0]
    assert world.records('runs')[0]['variables']['JAX_NOTE'] == 'two words, $HOME'


@pytest.mark.parametrize('event', [42, 'kill', 'preempt'])
def test_it_comes_back_after_an_end_that_a_restart_mends(world, submit, event):
    world.plan(p0=[event, 0])
    submit(*TWO_TASKS, 'train')
    assert end(world) == 0
    assert runs_of(world, '0') == [0, 1]
    assert 'back into the queue (restart 1 of 20)' in (world.state / 'simclr-7.log').read_text()


@pytest.mark.parametrize('code, ends_with', [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize('others', ['save', 'hang'])
def test_it_stays_away_after_a_failure_although_the_others_are_stopped(world, submit, code, ends_with, others):
    world.plan(p0=[others], p1=[code])
    submit(*TWO_TASKS, 'train')
    assert end(world) == ends_with
    assert runs_of(world, '1') == [0]


def test_restarts_have_a_limit(world, submit):
    world.plan(p0=[42])
    # A second task may be stopped before it can answer SIGTERM, and then the job ends with the higher 143.
    submit('--nodes=1', '--gpus=1', '--restarts=2', 'train')
    assert end(world) == 42
    assert runs_of(world, '0') == [0, 1, 2]
    assert 'all 2 restarts are used up' in (world.state / 'simclr-7.log').read_text()


def test_cancelled_it_saves_and_does_not_come_back(world, root):
    world.plan(p0=['save'], p1=['save'])
    script = root / 'launch' / 'slurm' / 'submit.sh'
    with world.start(script, *TWO_TASKS, 'train') as process:
        log = world.state / 'simclr-7.log'
        while not log.exists() or log.read_text().count('waiting') < 2:
            time.sleep(0.05)
        (world.state / 'cancel').touch()
        process.wait(timeout=20)
    assert end(world) == 42
    assert runs_of(world, '0') == [0]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('--nodes=2',), 'give the arguments of simclr'),
        (('--nodes=few', 'train'), '--nodes=few must be a whole number'),
        (('--extra=cuda', 'train'), '--extra=cuda must be cuda12 or cuda13'),
        (('--partition=gpu', 'train'), 'there is no option --partition=gpu'),
    ],
)
def test_mistakes_are_told(world, submit, arguments, message):
    done = submit(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert world.records('calls') == []
