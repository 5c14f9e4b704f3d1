"""The separate process that compiles: it ends with the one that asked, and nothing stays on the disk."""

import os
import subprocess
import sys
import time

from support.paths import REPOSITORY
from support.stand_ins import executable

# Asks a stand-in for the process, which notes the request, and then the end of its input.
ASK = """
import pathlib, sys
from simclr_jax.config import load_config
from simclr_jax.planning import libtpu, process
from simclr_jax.planning.topology import parse_topology
libtpu.install = lambda say: pathlib.Path('.')
sys.executable = sys.argv[1]
process.compile_for(parse_topology('v5e:1x1'), load_config('configs/digits.py'), 10, 1437, print)
"""


def test_it_ends_with_a_killed_parent_and_leaves_nothing(tmp_path):
    note, temporary = tmp_path / 'note', tmp_path / 'temporary'
    temporary.mkdir()
    program = executable(tmp_path / 'python', f'read -r line; echo asked >"{note}"; read -r line; echo ended >"{note}"')
    environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY), 'TMPDIR': str(temporary)}
    with subprocess.Popen([sys.executable, '-c', ASK, str(program)], env=environment, cwd=REPOSITORY) as parent:
        assert becomes(note, 'asked\n')
        parent.terminate()
    assert becomes(note, 'ended\n')
    assert list(temporary.iterdir()) == []


def becomes(path, text, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and path.read_text() == text:
            return True
        time.sleep(0.05)
    return False
