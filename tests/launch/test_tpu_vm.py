"""launch/tpu_vm/pod.sh through whole lives of a queued resource, with a stand-in gcloud whose hosts are directories."""

import pathlib
import time

import pytest

from support.stand_ins import AWKWARD, World, checkout

POD = ('--name=pod', '--zone=us-x1-a', '--poll=0.1')
SLICE = (*POD, '--topology=v4:2x2x2')  # two hosts
HOST = (*POD, '--topology=v4:2x2x1')
TRAIN = ('train', '--workdir=gs://bucket/run')
POD_SH = 'launch/tpu_vm/pod.sh'


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, 'gcloud')


@pytest.fixture
def pod(root, world):
    """pod(ARGUMENTS) runs pod.sh of a checkout."""
    return lambda *arguments, **variables: world.run(root / POD_SH, *arguments, **variables)


def verbs(world, *chosen):
    return [call[1] for call in world.records('calls') if call[1] in chosen]


def test_a_job_from_creation_to_its_end(world, pod):
    done = pod('run', *SLICE, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert verbs(world, 'create', 'scp', 'delete') == ['create', 'scp']
    assert sorted(run['process'] for run in world.records('runs')) == ['0', '1']
    states = [line.split(': ')[1] for line in done.stderr.splitlines() if ' pod: ' in line]
    assert states[:3] == ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']
    assert states[-1] == 'finished'


def test_arguments_pass_unchanged_through_both_shells(world, pod):
    done = pod('run', *SLICE, *AWKWARD)
    assert done.returncode == 0, done.stderr
    assert [run['arguments'] for run in world.records('runs')] == [AWKWARD, AWKWARD]


def test_options_of_gcloud_and_variables_pass_through(world, pod):
    """systemd would replace the variables of the service in its arguments: $JAX_NOTE, ${JAX_NOTE} and $$."""
    platform = ('--reserved', '--internal-ips', '--network=mine', '--labels=team=vision', '--service-account=a@b')
    options = [*(f'--platform={option}' for option in platform), '--ssh=--tunnel-through-iap']
    arguments = [*TRAIN, '$JAX_NOTE', '${JAX_NOTE}', 'a$JAX_NOTE', '$$']
    done = pod('run', *HOST, *options, '--env=JAX_NOTE=two words, $HOME', '--env=JAX_B=', *arguments)
    assert done.returncode == 0, done.stderr
    (create,) = [call for call in world.records('calls') if call[1] == 'create']
    assert set(platform) < set(create)
    reached = [call for call in world.records('calls') if call[1] in ('ssh', 'scp')]
    assert reached
    assert all('--tunnel-through-iap' in call for call in reached)
    (run,) = world.records('runs')
    assert run['arguments'] == arguments
    assert run['variables'] == {'JAX_NOTE': 'two words, $HOME', 'JAX_B': ''}


def test_the_archive_has_a_new_name_and_does_not_stay(world, tmp_path, pod):
    (tmp_path / 'simclr-pod.tar.gz').mkdir()  # nobody can prepare the name
    assert pod('run', *HOST, *TRAIN).returncode == 0
    (scp,) = [call for call in world.records('calls') if call[1] == 'scp']
    (archive,) = [word for word in scp if word.startswith(f'{tmp_path}/simclr-')]
    deadline = time.monotonic() + 10
    while pathlib.Path(archive).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [path.name for path in tmp_path.glob('simclr-*')] == ['simclr-pod.tar.gz']


def test_a_preempted_slice_is_made_again_and_goes_on_with_the_same_command(world, pod):
    world.plan(p0=['preempt', 0])
    done = pod('run', *SLICE, '--spot', *TRAIN)
    assert done.returncode == 0, done.stderr
    assert verbs(world, 'create', 'scp', 'delete') == ['create', 'scp', 'delete', 'create', 'scp']
    first, second = [call for call in world.records('calls') if call[1] == 'create']
    assert first == second
    assert '--spot' in first
    runs = [run for run in world.records('runs') if run['process'] == '0']
    assert [(run['run'], run['arguments']) for run in runs] == [(0, list(TRAIN)), (1, list(TRAIN))]


@pytest.mark.parametrize('end', [42, 'kill'])
def test_a_lost_process_is_started_again_where_it_ran(world, pod, end):
    world.plan(p0=[end, 0])
    done = pod('run', *HOST, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert verbs(world, 'create', 'scp', 'delete') == ['create', 'scp']
    assert len(world.records('runs')) == 2


def test_a_program_that_fails_ends_the_job_on_all_hosts(world, pod):
    world.plan(p0=[2], p1=['save'])
    done = pod('run', *SLICE, *TRAIN)
    assert done.returncode == 2
    assert 'failed with exit code 2' in done.stderr
    assert 'process 0, run 0: 2' in done.stdout  # the end of the log
    assert [run['process'] for run in world.records('runs')].count('0') == 1
    assert 'simclr-worker t1v-w-1 stopped' in pod('status', *SLICE).stdout


def test_restarts_have_a_limit(world, pod):
    world.plan(p0=[42])
    done = pod('run', *HOST, '--restarts=1', *TRAIN)
    assert done.returncode == 42
    assert len(world.records('runs')) == 4  # two lives of two runs


def test_a_request_that_is_refused_ends_the_job_at_once(world, pod):
    (world.state / 'create-fails').touch()
    done = pod('run', *HOST, *TRAIN)
    assert done.returncode == 1
    assert 'RESOURCE_EXHAUSTED' in done.stderr
    assert verbs(world, 'create') == ['create']


def test_an_installation_that_fails_ends_the_job(world, pod):
    (world.state / 'install-fails').touch()
    done = pod('run', *HOST, *TRAIN)
    assert done.returncode == 1
    assert verbs(world, 'create', 'scp') == ['create', 'scp']


def test_step_by_step(world, root, pod):
    assert pod('create', *SLICE).returncode == 0
    assert pod('install', *SLICE).returncode == 0
    assert pod('status', *SLICE).stdout.count(' absent') == 2
    world.plan(p0=['save'], p1=['save'])
    assert pod('start', *SLICE, *TRAIN).returncode == 0
    assert pod('status', *SLICE).stdout.count(' running') == 2
    # Another run takes over: it neither ships nor starts; a stop from outside ends it.
    with world.start(root / POD_SH, 'run', *SLICE, *TRAIN) as run:
        while 'pod: running' not in run.stderr.readline():
            assert run.poll() is None
        assert pod('stop', *SLICE).returncode == 0
        assert run.wait(timeout=120) == 1
        assert 'pod: stopped' in run.stderr.read()
    assert verbs(world, 'scp') == ['scp']
    assert len(world.records('runs')) == 2
    assert pod('delete', *SLICE).returncode == 0
    assert pod('status', *SLICE).returncode == 1


def test_what_is_shipped_is_the_tracked_files_as_they_are(world, tmp_path):
    root = checkout(tmp_path)
    (root / 'untracked').touch()
    with (root / 'setup.py').open('a') as file:
        file.write('# changed\n')
    for command in ('create', 'install'):
        assert world.run(root / POD_SH, command, *SLICE).returncode == 0
    for host in (world.state / 'tpus' / 'pod').glob('host-*'):
        assert (host / 'simclr' / 'setup.py').read_text().endswith('# changed\n')
        assert not (host / 'simclr' / 'untracked').exists()
    pips = world.records('installs')
    assert len(pips) == 2
    assert all('--constraint' in pip and pip[-1].endswith('[tensorflow,tpu]') for pip in pips)


def test_several_slices_are_one_queued_resource(world, pod):
    done = pod('run', '--name=pod', '--zone=us-x1-a', '--topology=v5e:2x4', '--slices=2', '--poll=0.1', *TRAIN)
    assert done.returncode == 0, done.stderr
    (create,) = [call for call in world.records('calls') if call[1] == 'create']
    assert {'--node-prefix=pod', '--node-count=2', '--accelerator-type=v5litepod-8'} < set(create)
    assert sorted(run['process'] for run in world.records('runs')) == ['0', '1']


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((), 'unknown command'),
        (('walk',), 'unknown command'),
        (('run', '--zone=z', '--topology=v5e:4x4', *TRAIN), '--name=... is needed (or SIMCLR_NAME'),
        (('run', '--name=n', '--zone=z', '--topology=v5e:4x4x4', *TRAIN), '--topology=v5e:4x4x4 must be'),
        (('run', '--name=n', '--zone=z', '--topology=v4:4x4', *TRAIN), '--topology=v4:4x4 must be'),
        (('run', '--name=n', '--zone=z', '--topology=v5e:4x9', *TRAIN), '--topology=v5e:4x9: no such slice is offered'),
        (('run', '--name=n', '--zone=z', '--topology=h100:8', *TRAIN), '--topology=h100:8 must be'),
        (('run', '--name=n', '--zone=z', '--sport', *TRAIN), 'there is no option --sport'),
        (('run', *SLICE, '--slices=two', *TRAIN), '--slices=two must be a whole number'),
        (('run', *SLICE, '--env=5', *TRAIN), '--env=5 must be --env=NAME=VALUE'),
        (('run', *SLICE, 'train', '--workdir=runs/x'), 'needs --workdir=gs://BUCKET'),
        (('run', *SLICE, 'train'), 'needs --workdir=gs://BUCKET'),
    ],
)
def test_mistakes_are_told_before_anything_is_done(world, pod, arguments, message):
    done = pod(*arguments)
    assert (done.returncode, done.stdout) == (2, '')
    assert message in done.stderr
    assert world.records('calls') == []


def test_options_come_from_the_environment_as_well(world, pod):
    done = pod('create', SIMCLR_NAME='pod', SIMCLR_ZONE='z', SIMCLR_TOPOLOGY='v4:2x2x1', SIMCLR_POLL='0.1')
    assert done.returncode == 0, done.stderr
    assert '--zone=z' in world.records('calls')[0]
