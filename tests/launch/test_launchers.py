"""The launchers: their style, the Python they look for, and the environment that they make only once."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from support.stand_ins import BASH, REPOSITORY, executable

SCRIPTS = [*sorted((REPOSITORY / 'launch').rglob('*.sh')), REPOSITORY / '.ci' / 'run']
TOOLS = ('cat', 'cksum', 'tee', 'dirname', 'tr')  # what the launchers need besides bash

OLD_PYTHON = '[ "$1" = --version ] && echo Python 3.9.1 || exit 1'
NEW_PYTHON = f'exec {sys.executable} "$@"'
# Writes down each call; `-m venv DIR` makes an environment with this very python in it.
RECORDING_PYTHON = """echo "$@" >>"$CALLS"
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi
"""
# Prints each argument in a line of its own.
PRINTING_SIMCLR = """printf '<%s>\\n' "$@\""""


@pytest.fixture
def tree(tmp_path):
    """A copy of what the launchers read, in a directory with a space in its name."""
    root = tmp_path / 'my simclr'
    root.mkdir()
    shutil.copytree(REPOSITORY / 'launch', root / 'launch')
    for name in ('setup.py', 'constraints.txt'):
        shutil.copy(REPOSITORY / name, root / name)
    return root


@pytest.fixture
def commands(tmp_path):
    """A directory for the PATH with the few tools of the launchers and no Python."""
    folder = tmp_path / 'commands'
    folder.mkdir()
    for tool in (*TOOLS, 'cp', 'mkdir'):
        (folder / tool).symlink_to(shutil.which(tool))
    return folder


def bash(*arguments, path=None, **variables):
    environment = {'PATH': str(path) if path else os.environ['PATH'], **variables}
    return subprocess.run([BASH, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    done = bash('-n', str(script))
    assert (done.returncode, done.stderr) == (0, '')
    assert script.read_text().startswith('#!/usr/bin/env bash') == os.access(script, os.X_OK)


def test_shellcheck_has_nothing_to_say():
    shellcheck = pathlib.Path(sys.executable).parent / 'shellcheck'
    done = subprocess.run(
        [shellcheck, '--external-sources', *SCRIPTS], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, '')


def find_python(commands, **variables):
    source = f'source "{REPOSITORY}/launch/environment.sh"; find_python'
    return bash('-c', source, 'launch/local.sh', path=commands, **variables)


def test_no_python_is_told(commands):
    done = find_python(commands)
    assert (done.returncode, done.stdout) == (2, '')
    assert 'needs Python 3.11 or newer; found: none' in done.stderr
    assert 'SIMCLR_PYTHON=/path/to/python launch/local.sh' in done.stderr


def test_an_old_python_is_told(commands):
    executable(commands / 'python3', OLD_PYTHON)
    done = find_python(commands)
    assert (done.returncode, done.stdout) == (2, '')
    assert 'found: Python 3.9.1' in done.stderr


def test_a_newer_python_beside_an_old_one_is_found(commands):
    executable(commands / 'python3', OLD_PYTHON)
    executable(commands / 'python3.12', NEW_PYTHON)
    done = find_python(commands)
    assert (done.returncode, done.stdout, done.stderr) == (0, 'python3.12\n', '')


def test_the_named_python_is_the_only_one_asked(commands, tmp_path):
    executable(commands / 'python3', NEW_PYTHON)
    old = executable(tmp_path / 'old python' / 'python', OLD_PYTHON)
    new = executable(tmp_path / 'new python' / 'python', NEW_PYTHON)
    assert 'found: Python 3.9.1' in find_python(commands, SIMCLR_PYTHON=str(old)).stderr
    assert 'found: none' in find_python(commands, SIMCLR_PYTHON=str(tmp_path / 'absent')).stderr
    assert find_python(commands, SIMCLR_PYTHON=str(new)).stdout == f'{new}\n'


def test_a_launcher_without_python_stops_before_it_makes_anything(tree, commands):
    done = bash(str(tree / 'launch' / 'local.sh'), 'train', path=commands)
    assert done.returncode == 2
    assert 'needs Python 3.11' in done.stderr
    assert not (tree / '.venv').exists()


@pytest.fixture
def prepare(tree, commands, tmp_path):
    """prepare(extra) -> the calls of Python in one prepare_environment of the tree."""
    calls = tmp_path / 'calls'
    executable(commands / 'python3', RECORDING_PYTHON)

    def run(extra='', fails=False):
        calls.write_text('')
        source = f'set -euo pipefail; root="{tree}"; source "$root/launch/environment.sh"'
        done = bash('-c', f'{source}; prepare_environment {extra}', path=commands, CALLS=str(calls))
        assert (done.returncode != 0) == fails, done.stderr
        return [line for line in calls.read_text().splitlines() if line.startswith('-m')]

    return run


def test_the_environment_is_made_once(prepare, tree):
    venv, pip = prepare()
    assert venv == f'-m venv {tree}/.venv'
    assert pip.startswith('-m pip install')
    assert f'--constraint {tree}/constraints.txt --editable {tree}' in pip
    assert prepare() == []


@pytest.mark.parametrize('file', ['setup.py', 'constraints.txt'])
def test_it_is_brought_up_to_date_where_a_requirement_changed(prepare, tree, file):
    prepare()
    with (tree / file).open('a') as text:
        text.write('\n# changed\n')
    (pip,) = prepare()
    assert pip.startswith('-m pip install')
    assert prepare() == []


def test_an_extra_is_added_to_it(prepare, tree):
    prepare()
    (pip,) = prepare('test')
    assert pip.endswith(f'--editable {tree}[test]')
    assert prepare('test') == []
    assert prepare() == []


def test_a_failed_installation_is_tried_again(prepare, tree):
    python = executable(tree / '.venv' / 'bin' / 'python', 'exit 1')
    assert prepare(fails=True) == []
    executable(python, RECORDING_PYTHON)
    assert len(prepare()) == 1


@pytest.fixture
def prepared(tree, prepare):
    """The tree with its environment, in which simclr prints its arguments."""
    prepare()
    executable(tree / '.venv' / 'bin' / 'simclr', PRINTING_SIMCLR)
    return tree


def test_arguments_pass_unchanged(prepared, commands):
    arguments = ['train', '--workdir=my runs', "it's", '"quoted"', '$HOME', '`id`', 'a;b', '*', '', '--x=\\n']
    done = bash(str(prepared / 'launch' / 'local.sh'), *arguments, path=commands)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.splitlines() == [f'<{argument}>' for argument in arguments]


def test_the_exit_code_passes_unchanged(prepared, commands):
    executable(prepared / '.venv' / 'bin' / 'simclr', 'exit 42')
    assert bash(str(prepared / 'launch' / 'local.sh'), 'train', path=commands).returncode == 42


def test_the_main_job_trains_then_evaluates(prepared, commands):
    done = bash(str(prepared / 'launch' / 'local.sh'), path=commands)
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[:3] == ['<train>', '<--config=configs/digits.py>', '<--workdir=runs/digits>']
    assert lines[3:5] == ['<evaluate>', '<--workdir=runs/digits>']


def test_the_main_job_evaluates_nothing_where_training_failed(prepared, commands):
    executable(prepared / '.venv' / 'bin' / 'simclr', 'echo "$1"; exit 2')
    done = bash(str(prepared / 'launch' / 'local.sh'), path=commands)
    assert (done.returncode, done.stdout) == (2, 'train\n')


def test_the_search_path_of_cd_does_not_mislead(prepared, commands):
    done = subprocess.run(
        [BASH, 'launch/local.sh', 'train'],
        cwd=prepared,
        env={'PATH': str(commands), 'CDPATH': '.'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, '<train>\n')
