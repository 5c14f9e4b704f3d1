"""A job of three processes loses one: the others end with 42 and say which one, in one line each."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from support.paths import REPOSITORY

# Meets the others again and again, with shorter limits than a real job has.
PROGRAM = """
import os, sys, time
from simclr_jax import distributed, liveness
from simclr_jax.cli import third_parties
third_parties.quiet()
distributed.HEARTBEAT_TIMEOUT = 6
liveness.INTERVAL, liveness.SILENCE, liveness.FAREWELL = 0.3, 10, 1
distributed.start()
print('started', flush=True)
for meeting in range(int(sys.argv[1])):
    distributed.wait_for_all(f'meeting {meeting}')
    time.sleep(0.05)
if sys.argv[2] == 'mistake':
    try:
        distributed.together(lambda: int('x' if os.environ['JAX_PROCESS_ID'] == '1' else '1'), (ValueError,))
    except (ValueError, distributed.FailedElsewhere):
        time.sleep(float(os.environ['JAX_PROCESS_ID']))
        sys.exit(2)
distributed.leave_together()
"""


def start_job(meetings, end=''):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{probe.getsockname()[1]}'
    environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    environment |= {'PYTHONPATH': str(REPOSITORY), 'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': '3'}
    return [
        subprocess.Popen(
            [sys.executable, '-c', PROGRAM, str(meetings), end],
            env=environment | {'JAX_PROCESS_ID': str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(3)
    ]


def ends(processes):
    """Exit code and messages of each."""
    try:
        messages = [process.communicate(timeout=100)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, message) for process, message in zip(processes, messages, strict=True)]


@pytest.mark.slow
@pytest.mark.multiprocess
class TestJob:
    @pytest.mark.parametrize('lost', [0, 2])
    def test_a_stopped_process_is_lost(self, lost):
        processes = start_job(1_000_000)
        for process in processes:
            assert process.stdout.readline() == 'started\n'
        processes[lost].send_signal(signal.SIGSTOP)
        others = [process for index, process in enumerate(processes) if index != lost]
        message = f'simclr: process {lost} of this job is lost; start the whole job again\n'
        assert ends(others) == [(42, message)] * 2
        processes[lost].kill()
        processes[lost].communicate()

    @pytest.mark.parametrize('end, code', [('', 0), ('mistake', 2)])
    def test_an_end_together_is_no_loss(self, end, code):
        assert ends(start_job(3, end)) == [(code, '')] * 3
