"""Locks: one owner at a time, whom others are told, and none after its death."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from simclr_jax.config import ConfigError
from simclr_jax.training import lock, lock_file
from simclr_jax.training.lock import Lock

HOLD = """
import sys, time
from simclr_jax.training.lock import Lock
with Lock(sys.argv[1], 'train'):
    print('held', flush=True)
    time.sleep(100)
"""


@pytest.fixture
def no_kernel_lock(monkeypatch):
    """A file system without locks, as gs:// is, and a short patience."""

    def refuse(path, owner):
        raise OSError(lock.errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(lock, '_by_the_kernel', refuse)
    monkeypatch.setattr(lock_file, 'SETTLE', 0.02)
    for name, seconds in {'BEAT': 0.05, 'STALE': 0.6}.items():
        monkeypatch.setattr(lock, name, seconds)


def test_the_second_is_refused_and_told_the_owner(tmp_path):
    with Lock(str(tmp_path), 'train'):
        with pytest.raises(ConfigError, match=rf'process {os.getpid()} on .*, since 20.* UTC.*choose another'):
            Lock(str(tmp_path), 'train').__enter__()
        # The refused one took nothing away, and another name is another lock.
        assert json.loads((tmp_path / 'train.lock').read_text())['pid'] == os.getpid()
        with Lock(str(tmp_path), 'result'):
            pass
    assert list(tmp_path.iterdir()) == []
    with Lock(str(tmp_path), 'train'):
        pass


def test_an_owner_killed_without_warning_holds_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, '-c', HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'held\n'
    with pytest.raises(ConfigError, match=f'process {process.pid} on '):
        Lock(str(tmp_path), 'train').__enter__()
    process.kill()
    process.communicate()
    assert (tmp_path / 'train.lock').exists()
    start = time.monotonic()
    with Lock(str(tmp_path), 'train'):
        assert time.monotonic() - start < 1


@pytest.mark.parametrize('by', ['kernel', 'signs of life'])
def test_those_who_wait_go_in_one_after_the_other(tmp_path, by, request):
    if by == 'signs of life':
        request.getfixturevalue('no_kernel_lock')
    inside, most = [], []

    def enter():
        with Lock(str(tmp_path), 'result', wait=60.0, say=lambda text: None):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for number, thread in enumerate(threads):
        # Claims at the very same moment are only told apart by the kernel.
        time.sleep(0.1 * number if by == 'signs of life' else 0)
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def other_machine(path: pathlib.Path, **fields):
    owner = {'host': 'elsewhere', 'space': '', 'pid': 7, 'started': 1.0, 'since': 'then', 'token': 'other'}
    path.write_text(json.dumps(owner | {'beat': time.time()} | fields))


@pytest.mark.usefixtures('no_kernel_lock')
class TestWithoutLocksOfTheKernel:
    def test_an_owner_on_another_machine_lives_as_long_as_it_gives_signs(self, tmp_path):
        path, is_over = tmp_path / 'train.lock', threading.Event()
        other_machine(path)

        def live():
            while not is_over.wait(0.1):
                other_machine(path)

        thread = threading.Thread(target=live)
        thread.start()
        said = []
        with pytest.raises(ConfigError, match='process 7 on elsewhere'):
            Lock(str(tmp_path), 'train', say=said.append).__enter__()
        assert 'waiting up to' in said[0]
        is_over.set()
        thread.join()
        with Lock(str(tmp_path), 'train', say=said.append):
            assert json.loads(path.read_text())['pid'] == os.getpid()
        assert not path.exists()

    def test_a_dead_owner_is_known_at_once(self, tmp_path):
        # No sign of life for a long time; or a process of this machine, whose number another one has now.
        here = dataclasses.asdict(lock._this_process())
        for fields in {'beat': 1.0}, here | {'started': 1.0}, here | {'pid': 2**22 + 1}:
            other_machine(tmp_path / 'train.lock', **fields)
            with Lock(str(tmp_path), 'train', say=pytest.fail):
                pass

    def test_this_machine_knows_at_once_who_lives(self, tmp_path):
        with Lock(str(tmp_path), 'train'), pytest.raises(ConfigError, match=f'process {os.getpid()}'):
            Lock(str(tmp_path), 'train', say=pytest.fail).__enter__()

    @pytest.mark.parametrize('content', ['', '{"host": "a"}', '[1]'])
    def test_a_file_that_names_nobody_holds_nothing(self, tmp_path, content):
        (tmp_path / 'train.lock').write_text(content)
        with Lock(str(tmp_path), 'train', say=pytest.fail):
            pass

    def test_who_was_suspended_for_too_long_learns_of_the_new_owner(self, tmp_path):
        with Lock(str(tmp_path), 'train') as held:
            held.check()
            other_machine(tmp_path / 'train.lock')
            time.sleep(0.3)
            with pytest.raises(ConfigError, match='process 7 on elsewhere'):
                held.check()
        assert json.loads((tmp_path / 'train.lock').read_text())['token'] == 'other'


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='file'):
        Lock(str(epath.Path(tmp_path) / 'file' / 'run'), 'train').__enter__()
