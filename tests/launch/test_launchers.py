"""The launchers: their style, the Python they look for, and the environment that they make only once."""

import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from simclr_jax.config import ConfigError
from simclr_jax.planning.topology import parse_topology
from support.stand_ins import BASH, REPOSITORY, executable

SCRIPTS = [*sorted((REPOSITORY / 'launch').rglob('*.sh')), REPOSITORY / '.ci' / 'run']
TOOLS = ('cat', 'cksum', 'dirname', 'tr')  # what the launchers need besides bash

OLD_PYTHON = '[ "$1" = --version ] && echo Python 3.9.1 || exit 1'
NEW_PYTHON = f'exec {sys.executable} "$@"'
# Records each call. `-m venv DIR` makes an environment with this Python, its pip and a script in it. `-c` is real.
RECORDING_PYTHON = f"""echo "$@" >>"$CALLS"
case "$1 $2" in
  "-c "*) exec {sys.executable} -S "$@" ;;
  "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo "#!$3/bin/python" >"$3/bin/tool" ;;
  "-m pip") [ "$3" != install ] || [ ! -e "$INTERRUPT" ] || kill -s KILL $PPID ;;
esac
"""
# Prints each argument in a line of its own.
PRINTING_SIMCLR = """printf '<%s>\\n' "$@\""""


# Prints for each topology whether the launchers take it.
TOPOLOGIES = """source "$0/launch/options.sh"; source "$0/launch/tpu.sh"
for topology; do (runtime_version= && describe_slice "$topology" 2>/dev/null && echo "$chips") || echo no; done"""


@pytest.fixture
def tree(tmp_path):
    """A copy of what the launchers read, in a directory with a space in its name."""
    root = tmp_path / 'my simclr'
    root.mkdir()
    shutil.copytree(REPOSITORY / 'launch', root / 'launch')
    shutil.copytree(REPOSITORY / 'constraints', root / 'constraints')
    shutil.copy(REPOSITORY / 'setup.py', root)
    return root


@pytest.fixture
def commands(tmp_path):
    """A directory for the PATH with the few tools of the launchers and no Python."""
    folder = tmp_path / 'commands'
    folder.mkdir()
    for tool in (*TOOLS, 'cp', 'mkdir', 'mv', 'rm'):
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


def test_the_newest_python_is_taken_pyenvs_too(commands, tmp_path):
    executable(commands / 'python3', NEW_PYTHON)
    executable(commands / 'python3.11', NEW_PYTHON)
    pyenv = tmp_path / 'my pyenv'
    assert find_python(commands, PYENV_ROOT=str(pyenv)).stdout == 'python3.11\n'
    newest = executable(pyenv / 'versions' / '3.12.7' / 'bin' / 'python3.12', NEW_PYTHON)
    assert find_python(commands, PYENV_ROOT=str(pyenv)).stdout == f'{newest}\n'
    executable(commands / 'python3.13', OLD_PYTHON)  # as pyenv's shims of versions that are not chosen
    assert find_python(commands, PYENV_ROOT=str(pyenv)).stdout == f'{newest}\n'
    executable(commands / 'python3.13', NEW_PYTHON)
    assert find_python(commands, PYENV_ROOT=str(pyenv)).stdout == 'python3.13\n'


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


VERSION = f'py{sys.version_info.major}{sys.version_info.minor}'


@pytest.fixture
def prepare(tree, commands, tmp_path):
    """prepare(extras) -> the calls of Python in one prepare_environment of the tree, without those that ask it."""
    calls, interrupt = tmp_path / 'calls', tmp_path / 'interrupt'
    executable(commands / 'python3', RECORDING_PYTHON)

    def run(*extras, fails=False, interrupted=False, **variables):
        calls.write_text('')
        interrupt.unlink(missing_ok=True)
        if interrupted:
            interrupt.touch()
        source = f'set -euo pipefail; root="{tree}"; source "$root/launch/environment.sh"'
        variables = {'CALLS': str(calls), 'INTERRUPT': str(interrupt), **variables}
        done = bash('-c', f'{source}; prepare_environment {" ".join(extras)}', path=commands, **variables)
        assert (done.returncode != 0) == (fails or interrupted), done.stderr
        lines = [line for line in calls.read_text().splitlines() if line.startswith('-m')]
        return [line for line in lines if line != '-m pip --version']

    return run


def test_the_environment_is_made_once_and_beside_its_place(prepare, tree):
    venv, pip = prepare('tensorflow')
    assert venv == f'-m venv {tree}/.venv.new'
    assert pip.startswith('-m pip install')
    assert f'--constraint {tree}/constraints/{VERSION}.txt --editable {tree}[tensorflow]' in pip
    assert (tree / '.venv' / 'bin' / 'tool').read_text() == f'#!{tree}/.venv/bin/python\n'
    assert sorted(path.name for path in tree.glob('.venv*')) == ['.venv', '.venv.lock']
    assert prepare('tensorflow') == []


@pytest.mark.parametrize('file', ['setup.py', f'constraints/{VERSION}.txt'])
def test_it_is_brought_up_to_date_where_a_requirement_changed(prepare, tree, file):
    prepare()
    with (tree / file).open('a') as text:
        text.write('\n# changed\n')
    (pip,) = prepare()
    assert pip.startswith('-m pip install')
    assert prepare() == []


def test_extras_are_added_to_it_and_stay(prepare, tree):
    prepare('tensorflow')
    (pip,) = prepare('tensorflow', 'test')
    assert pip.endswith(f'--editable {tree}[tensorflow,test]')
    assert prepare('test') == prepare('tensorflow') == prepare() == []
    (tree / 'setup.py').write_text('')
    (pip,) = prepare('tensorflow')
    assert pip.endswith(f'--editable {tree}[tensorflow,test]')


def test_a_python_without_locked_versions_gets_the_newest_ones(prepare, tree):
    (tree / 'constraints' / f'{VERSION}.txt').unlink()
    _, pip = prepare()
    assert '--constraint' not in pip


def test_an_interrupted_first_start_leaves_nothing_in_its_place(prepare, tree):
    prepare(interrupted=True)
    assert not (tree / '.venv').exists()
    (tree / '.venv.new' / 'rest').touch()
    venv, _ = prepare()
    assert venv == f'-m venv {tree}/.venv.new'
    assert (tree / '.venv').exists()
    assert not list(tree.rglob('rest'))


@pytest.mark.parametrize('python', ['exit 1', '[ "$1" = -m ] && exit 1; echo 3.11'], ids=['no Python', 'no pip'])
def test_a_broken_environment_mends_itself(prepare, tree, python):
    prepare()
    executable(tree / '.venv' / 'bin' / 'python', python)
    (tree / '.venv' / 'installed').unlink()
    assert len(prepare()) == 2
    assert prepare() == []


def test_an_environment_whose_python_is_gone_mends_itself(prepare, tree):
    prepare()
    (tree / '.venv' / 'bin' / 'python').unlink()
    assert len(prepare()) == 2


def test_another_named_python_makes_another_environment(prepare, tree, tmp_path):
    prepare('tensorflow')
    other = executable(tmp_path / 'python3.99', RECORDING_PYTHON.replace(' -S "$@"', ' -S "$1" "print(3.99)"'))
    venv, pip = prepare(SIMCLR_PYTHON=str(other))
    assert venv == f'-m venv {tree}/.venv.new'
    assert pip.endswith(f'--editable {tree}[tensorflow]')
    assert prepare(SIMCLR_PYTHON=str(other)) == []
    # Without a name, a finished environment is kept, whatever Python is newest.
    assert prepare() == []


def test_two_first_starts_make_one_environment(prepare, tree, commands):
    with open(tree / '.venv.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor() as executor:
            later = executor.submit(prepare)
            time.sleep(1)
            assert not later.done()
            (tree / '.venv' / 'bin').mkdir(parents=True)
            shutil.copy(commands / 'python3', tree / '.venv' / 'bin' / 'python')
            command = 'cat setup.py constraints/*.txt | cksum >.venv/installed'
            subprocess.run([BASH, '-c', command], cwd=tree, check=True)
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert later.result() == []


@pytest.fixture
def prepared(tree, prepare):
    """The tree with its environment, in which simclr prints its arguments."""
    prepare('tensorflow')
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


def test_the_launchers_take_the_slices_that_plan_takes():
    sides = (1, 2, 3, 4, 8, 9, 12, 16, 20, 24)
    planes = [f'{chip}:{a}x{b}' for chip in ('v5e', 'v6e', 'v4') for a in sides for b in sides]
    boxes = [
        f'{chip}:{a}x{b}x{c}'
        for chip in ('v4', 'v5p', 'v5e')
        for a in (2, 4, 16)
        for b in sides
        for c in (1, 2, 4, 16, 24)
    ]
    texts = [*planes, *boxes, 'v9:2x2', 'v5e', 'v5e:', 'v5e:4x', 'v4:0x0x0', 'v5e:4x8x']
    done = bash('-c', TOPOLOGIES, str(REPOSITORY), *texts)
    expected = []
    for text in texts:
        try:
            expected.append(str(parse_topology(text).num_chips))
        except ConfigError:
            expected.append('no')
    assert dict(zip(texts, done.stdout.splitlines(), strict=True)) == dict(zip(texts, expected, strict=True))
