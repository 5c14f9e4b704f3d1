"""Signals while a command has nothing to save: one sentence, an exit code, and no waiting for compilers."""

import signal
import subprocess
import sys
import time

import pytest

from support.paths import REPOSITORY

# A command that works in short instructions, or in one that cannot be interrupted.
PROGRAM = """
import hashlib, sys, time
from simclr_jax.cli import stopping
stopping.GRACE, stopping.SAME = 0.3, 0.1
def work():
    print('working', flush=True)
    if sys.argv[1] == 'compiling':
        hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)
    try:
        time.sleep(60)
    finally:
        print('cleaned up', flush=True)
        if sys.argv[1] == 'cleaning':
            time.sleep(60)
try:
    with stopping.Watch(lambda number: f'stopped by {number.name}'):
        work()
except stopping.Interrupted as error:
    print(f'interrupted by {error.number.name}', flush=True)
    sys.exit(stopping.code_of(error.number))
"""


def start(kind):
    process = subprocess.Popen(
        [sys.executable, '-c', PROGRAM, kind],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'working\n'
    time.sleep(0.1)
    return process


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 42), (signal.SIGHUP, 42), (signal.SIGINT, 1)])
def test_a_command_cleans_up(number, code):
    process = start('plain')
    process.send_signal(number)
    assert process.communicate(timeout=30) == (f'cleaned up\ninterrupted by {number.name}\n', '')
    assert process.returncode == code


def test_what_cannot_be_interrupted_is_ended_after_a_grace():
    process = start('compiling')
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30) == ('', 'simclr: stopped by SIGTERM\n')
    assert process.returncode == 42


def test_a_second_signal_ends_at_once_and_quietly():
    process = start('cleaning')
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == 'cleaned up\n'
    time.sleep(0.15)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ('', '')
    assert process.returncode == 1
