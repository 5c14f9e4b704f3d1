"""--dry-run of every launcher: nothing happens, its commands are those of golden/, and they work when pasted.

Run with UPDATE_GOLDEN=1 to rewrite the golden files.
"""

import os
import pathlib
import subprocess
import time

import pytest

from support.stand_ins import AWKWARD, BASH, World

GOLDEN = pathlib.Path(__file__).parent / 'golden'
TRAIN = ('train', '--config=configs/imagenet.py:v1', '--workdir=gs://bucket/run', "--note=it's $5; so?")
POD = ('--name=pod', '--zone=us-x1-a')
JOB = ('--name=run', '--image=registry/simclr:1')

CASES = {
    'local_pod': ('local.sh', '--processes=4', '--devices=2', '--restarts=3', *TRAIN),
    'tpu_vm_run': ('tpu_vm/pod.sh', 'run', *POD, '--project=mine', '--topology=v5e:4x8', '--spot', *TRAIN),
    'tpu_vm_run_slices': ('tpu_vm/pod.sh', 'run', *POD, '--topology=v4:2x4x4', '--slices=2', '--restarts=5', *TRAIN),
    'tpu_vm_status': ('tpu_vm/pod.sh', 'status', *POD),
    'tpu_vm_logs': ('tpu_vm/pod.sh', 'logs', *POD),
    'tpu_vm_stop': ('tpu_vm/pod.sh', 'stop', *POD),
    'tpu_vm_delete': ('tpu_vm/pod.sh', 'delete', *POD),
    'gke_image': ('gke/jobset.sh', 'image', *JOB),
    'gke_apply': ('gke/jobset.sh', 'apply', *JOB, '--topology=v5e:4x8', *TRAIN),
    'gke_apply_spot_slices': ('gke/jobset.sh', 'apply', *JOB, '--topology=v6e:16x16', '--slices=4', '--spot', *TRAIN),
    'gke_xpk': ('gke/jobset.sh', 'xpk', *JOB, '--topology=v5e:4x8', '--cluster=mine', '--project=mine', *TRAIN),
    'gke_status': ('gke/jobset.sh', 'status', *JOB),
    'gke_logs': ('gke/jobset.sh', 'logs', *JOB),
    'gke_delete': ('gke/jobset.sh', 'delete', *JOB),
    'slurm_gpus': ('slurm/submit.sh', '--nodes=4', '--name=r50', *TRAIN),
    'slurm_cpus': ('slurm/submit.sh', '--gpus=0', '--cpus=32', '--restarts=3', *TRAIN),
}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, 'gcloud', 'kubectl', 'sbatch', 'srun', 'scontrol')


@pytest.fixture
def dry_run(root, world):
    """dry_run(SCRIPT, ARGUMENTS...) -> what it prints."""

    def run(script, *arguments):
        before = 0 if script in ('local.sh', 'slurm/submit.sh') else 1  # the others begin with a command
        done = world.run(root / 'launch' / script, *arguments[:before], '--dry-run', *arguments[before:])
        assert (done.returncode, done.stderr) == (0, '')
        return done.stdout

    return run


@pytest.mark.parametrize('case', CASES)
def test_it_prints_the_commands_and_does_nothing(dry_run, world, root, tmp_path, case):
    output = dry_run(*CASES[case]).replace(str(root), '/simclr').replace(str(tmp_path), '/tmp')
    golden = GOLDEN / f'{case}.txt'
    if 'UPDATE_GOLDEN' in os.environ:
        golden.write_text(output)
    assert output == golden.read_text()
    assert world.records('calls') + world.records('runs') == []


@pytest.mark.parametrize(
    'command',
    [
        ('local.sh', '--processes=2'),
        ('tpu_vm/pod.sh', 'run', *POD, '--topology=v4:2x2x2'),
        ('gke/jobset.sh', 'apply', *JOB, '--topology=v4:2x2x2'),
        ('slurm/submit.sh', '--nodes=2', '--gpus=1'),
    ],
    ids=lambda command: command[0],
)
def test_what_it_prints_works_when_pasted(dry_run, world, root, command):
    (world.state / 'image').symlink_to(root / '.venv' / 'bin')
    (world.state / 'no-queue').touch()
    pasted = subprocess.run(
        [BASH, '-e'], input=dry_run(*command, *AWKWARD), text=True, env=world.environment, cwd=world.state, check=False
    )
    assert pasted.returncode == 0
    deadline = time.monotonic() + 10
    while len(world.records('runs')) < 2 and time.monotonic() < deadline:  # on a pod, it runs in the background
        time.sleep(0.1)
    assert [run['arguments'] for run in world.records('runs')] == [AWKWARD, AWKWARD]
