"""What a process's environment says of its job, and what processes do together."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from simclr_jax import distributed
from simclr_jax.config import ConfigError
from simclr_jax.distributed import find_job
from support.paths import REPOSITORY

SLURM = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'n[1-2]', 'SLURM_NTASKS': '2', 'SLURM_PROCID': '1'}
ADDRESS = {'JAX_COORDINATOR_ADDRESS': 'host:1234'}


def explicit(count, number):
    return {
        'coordinator_address': 'host:1234',
        'num_processes': count,
        'process_id': number,
        'cluster_detection_method': 'deactivate',
    }


@pytest.mark.parametrize(
    'environment, has_tpu, expected',
    [
        ({}, False, None),
        (ADDRESS | {'JAX_NUM_PROCESSES': '4', 'JAX_PROCESS_ID': '3'}, False, explicit(4, 3)),
        (ADDRESS | {'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '0'}, False, explicit(2, 0)),
        (SLURM, False, {}),
        (SLURM | ADDRESS, False, explicit(2, 1)),
        # One task, or a shell inside an allocation, is no job of several.
        (SLURM | {'SLURM_NTASKS': '1'}, False, None),
        ({name: value for name, value in SLURM.items() if name != 'SLURM_STEP_NODELIST'}, False, None),
        ({'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_MCA_orte_hnp_uri': '1.0;tcp://10.0.0.1:5'}, False, {}),
        ({}, True, {}),
        ({'TPU_SKIP_MDS_QUERY': '1'}, True, None),
        ({'TPU_WORKER_HOSTNAMES': 'localhost'}, True, None),
        ({'TPU_WORKER_HOSTNAMES': 'a,b'}, True, {}),
        ({'TPU_PROCESS_ADDRESSES': 'a:1', 'MEGASCALE_NUM_SLICES': '2'}, True, {}),
        ({'TPU_WORKER_HOSTNAMES': 'a,b'}, False, None),
    ],
)
def test_where_there_are_several_processes(environment, has_tpu, expected):
    assert find_job(environment, has_tpu) == expected


@pytest.mark.parametrize(
    'environment, message',
    [
        (ADDRESS | {'JAX_PROCESS_ID': '0'}, 'none of JAX_NUM_PROCESSES'),
        (ADDRESS | {'JAX_NUM_PROCESSES': '2'}, 'set JAX_PROCESS_ID'),
        (ADDRESS | {'JAX_NUM_PROCESSES': 'two', 'JAX_PROCESS_ID': '0'}, 'JAX_NUM_PROCESSES=two: must be an integer'),
        ({'OMPI_COMM_WORLD_SIZE': '2'}, 'mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT'),
    ],
)
def test_an_environment_that_says_it_by_halves(environment, message):
    with pytest.raises(ConfigError, match=message):
        find_job(environment, False)


def test_slurm_and_open_mpi_are_what_jax_recognises():
    """JAX is told nothing there; that it finds the same job is its own doing, and here."""
    from jax._src.clusters import ompi_cluster, slurm_cluster

    environment = SLURM | {'SLURM_LOCALID': '0', 'OMPI_MCA_orte_hnp_uri': '4096.0;tcp://10.0.0.1:5'}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        assert slurm_cluster.SlurmCluster.is_env_present()
        assert slurm_cluster.SlurmCluster.get_process_count() == 2
        assert slurm_cluster.SlurmCluster.get_coordinator_address(1, '9') == 'n1:9'
        assert ompi_cluster.OmpiCluster.is_env_present()


def test_alone_there_is_nobody_to_wait_for():
    assert distributed.is_first()
    assert distributed.together(lambda: 3, (ConfigError,)) == 3
    assert distributed.from_first(lambda: 3, (ConfigError,)) == 3
    assert [distributed.all_agree(statement) for statement in (True, False)] == [True, False]
    with pytest.raises(ConfigError, match='mine'):
        distributed.together(lambda: (_ for _ in ()).throw(ConfigError(['mine'])), (ConfigError,))
    distributed.wait_for_all('nobody')


def test_sigterm_is_noticed_and_then_left_to_others():
    before = signal.getsignal(signal.SIGTERM)
    with distributed.Preemption() as preemption:
        assert not preemption.is_due()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.is_due()
    assert signal.getsignal(signal.SIGTERM) == before
    with distributed.Preemption() as another:
        assert not another.is_due()


# Of three processes the second one makes a mistake; prints what came of it.
TOGETHER = """
import json, jax
from simclr_jax import distributed
from simclr_jax.config import ConfigError
distributed.start()

def action():
    if jax.process_index() == 1:
        raise ConfigError(['mine'])
    return jax.process_index()

found = [distributed.all_agree(True), distributed.all_agree(jax.process_index() != 2), distributed.is_first()]
found += [distributed.as_first(jax.process_index() == 0), distributed.as_first(jax.process_index() == 1)]
found.append(distributed.together(jax.process_count, (ConfigError,)))
found.append(distributed.from_first(lambda: 'as long as process %d likes' % jax.process_index(), (ConfigError,)))
try:
    distributed.together(action, (ConfigError,))
except Exception as error:
    found += [type(error).__name__, str(error)]
distributed.say('said')
print(json.dumps(found), flush=True)
"""


@pytest.mark.multiprocess
def test_a_mistake_of_one_stops_all():
    command = [sys.executable, 'launch/processes.py', '--processes=3', sys.executable, '-c', TOGETHER]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    # Wherever they stand: Gloo's threads, which share the output, may have begun a line of their own.
    assert done.stdout.count('said') == 1
    found = sorted(json.loads(text) for text in re.findall(r'\[true.*?\]', done.stdout))
    elsewhere = ['FailedElsewhere', 'process 1 stopped, see its message']
    alike = [True, False, 3, 'as long as process 0 likes']
    assert found == [
        [True, False, False, *alike, 'ConfigError', 'mine'],
        [True, False, False, *alike, *elsewhere],
        [True, False, True, *alike, *elsewhere],
    ]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_first_process_may_take_longer_than_an_exchange():
    """JAX gives up the first exchange of a job after 30 seconds."""
    program = 'import time; from simclr_jax import distributed; distributed.start(); '
    program += 'distributed.say(distributed.from_first(lambda: time.sleep(40) or "done", ())); '
    program += 'distributed.leave_together()'
    command = [sys.executable, 'launch/processes.py', '--processes=2', sys.executable, '-c', program]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, 'done' in done.stdout) == (0, True), done.stderr
