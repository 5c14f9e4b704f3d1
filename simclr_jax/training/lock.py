"""Locks of a work directory: one process at a time trains in it, or writes its results.

On a file system of this machine the kernel holds the lock (`flock`), so that it ends with its process, however that
ends. Other places, such as gs://, have no such lock. There the owner renews a file every BEAT seconds. A file that
nobody renews for STALE seconds belongs to a process that has died. See lock_file.py for what such a file can promise.
"""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Protocol

import psutil
from etils import epath

from simclr_jax.config import ConfigError
from simclr_jax.config.paths import absolute, is_remote
from simclr_jax.config.storage import storage_errors
from simclr_jax.training.lock_file import LockFile, lock_file

# Seconds between two signs of life where the kernel holds no lock.
BEAT = 15.0
# Seconds without a sign of life after which an owner counts as dead. It is several beats, because networks pause.
STALE = 60.0
# An owner whose last sign of life is older than this number of seconds is dead. The clocks of two machines may differ.
ABANDONED = 600.0
NOT_SUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process that holds a lock.

    Attributes:
        host: Name of its machine.
        space: Text that identifies the numbering of processes there: that of a container, since the machine started.
        pid: Its number there.
        started: Start of the process, seconds since 1970. It tells two processes with the same number apart.
        since: When the lock was taken, UTC.
        token: Text that no other lock has.
        beat: Time of its last sign of life, seconds since 1970.
    """

    host: str
    space: str
    pid: int
    started: float
    since: str
    token: str
    beat: float

    def __str__(self) -> str:
        return f'process {self.pid} on {self.host}, since {self.since}'


class Lock:
    """A lock of a work directory, for a `with` block. Its file is `NAME.lock`, which names the owner.

    Args:
        directory: Work directory, local or gs://. It is made where it does not exist.
        name: Name of the lock. Locks of different names are independent.
        wait: Seconds to wait for an owner to release the lock. 0 refuses at once.
        say: Function that receives lines for the user.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory, Lock(directory, 'result', wait=60.0):
        ...     pass  # here no other process is inside such a block
    """

    def __init__(self, directory: str, name: str, *, wait: float = 0.0, say: Callable[[str], None] = print):
        self._path = absolute(directory) / f'{name}.lock'
        self._name, self._wait, self._say = name, wait, say
        self._held: _Held | None = None

    def __enter__(self) -> 'Lock':
        """Takes the lock.

        Raises:
            ConfigError: Another process holds the lock. The message names it.
            OSError: The directory cannot be written.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self._wait
        while True:
            taken = self._take()
            if not isinstance(taken, Owner):
                self._held = taken
                return self
            if time.monotonic() >= deadline:
                raise ConfigError([self._refusal(taken)])
            time.sleep(0.1)

    def __exit__(self, *error) -> None:
        if self._held:
            self._held.release()
        self._held = None

    def check(self) -> None:
        """Asserts that the lock is still held. A process that was suspended may have lost it to another one.

        Raises:
            ConfigError: Another process holds the lock now.
        """
        owner = self._held.lost_to() if self._held else None
        if owner:
            raise ConfigError([self._refusal(owner)])

    def _refusal(self, owner: Owner) -> str:
        return (
            f'{self._path.parent} is in use by another process ({owner}; {self._path.name}); '
            'wait for its end, stop it, or choose another --workdir'
        )

    def _take(self) -> '_Held | Owner':
        owner = _this_process()
        if not is_remote(self._path):
            try:
                return _by_the_kernel(self._path, owner)
            except OSError as error:
                if error.errno not in NOT_SUPPORTED:
                    raise
        return _by_signs_of_life(self._path, owner, self._say)


class _Held(Protocol):
    """A lock that is held."""

    def release(self) -> None: ...

    def lost_to(self) -> Owner | None: ...


def _this_process() -> Owner:
    space = ''
    with contextlib.suppress(OSError):
        boot = epath.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        space = f'{boot} {os.readlink("/proc/self/ns/pid")}'
    started = psutil.Process().create_time()
    since = datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M:%S UTC')
    return Owner(socket.gethostname(), space, os.getpid(), started, since, uuid.uuid4().hex, time.time())


def _owner(text: str) -> Owner | None:
    """The owner that the content of a lock's file names. None if it names nobody."""
    try:
        return Owner(**json.loads(text))
    except (ValueError, TypeError):
        return None


def _text(owner: Owner) -> str:
    return json.dumps(dataclasses.asdict(owner)) + '\n'


def _by_the_kernel(path: epath.Path, owner: Owner) -> '_Held | Owner':
    found = None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The owner before may have removed the file after it was opened here.
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, _text(owner).encode())
                return _KernelLock(path, descriptor)
        except BlockingIOError:
            os.close(descriptor)
            # The new owner may be about to write its name.
            with contextlib.suppress(FileNotFoundError):
                found = _owner(path.read_text())
            return found or dataclasses.replace(owner, host='this machine', pid=0, since='just now')
        except FileNotFoundError:
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


@dataclasses.dataclass(frozen=True)
class _KernelLock:
    path: epath.Path
    descriptor: int

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self.descriptor)

    def lost_to(self) -> Owner | None:
        return None


def _by_signs_of_life(path: epath.Path, owner: Owner, say: Callable[[str], None]) -> '_Held | Owner':
    file = lock_file(path)
    while True:
        text, version = file.read()
        other = _owner(text)
        if other and _is_alive(file, path, other, say):
            return other
        if file.write(_text(owner), version, is_claim=True):
            return _Lease(file, owner)


def _is_alive(file: LockFile, path: epath.Path, owner: Owner, say: Callable[[str], None]) -> bool:
    """Whether an owner renews its file. This takes up to STALE seconds, unless it is known at once."""
    here = _this_process()
    if owner.space and (owner.host, owner.space) == (here.host, here.space):
        try:
            return abs(psutil.Process(owner.pid).create_time() - owner.started) < 1
        except psutil.NoSuchProcess:
            return False
    if time.time() - owner.beat > ABANDONED:
        return False
    say(f'{path} names {owner}; waiting up to {STALE:.0f} s for a sign of life.')
    deadline = time.monotonic() + STALE
    while time.monotonic() < deadline:
        time.sleep(STALE / 60)
        found = _owner(file.read()[0])
        if found != owner:
            return found is not None
    return False


class _Lease:
    """A file that this process renews until the lock is released."""

    def __init__(self, file: LockFile, owner: Owner):
        self._file, self._owner, self._lost_to = file, owner, None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name='lock', daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._is_over.wait(BEAT):
            # A network that is down for a moment is no reason to end: the next beat comes.
            with contextlib.suppress(OSError, *storage_errors()):
                text, version = self._file.read()
                found = _owner(text)
                if found and found.token != self._owner.token:
                    self._lost_to = found
                    return
                self._file.write(_text(dataclasses.replace(self._owner, beat=time.time())), version)

    def release(self) -> None:
        self._is_over.set()
        self._thread.join()
        with contextlib.suppress(OSError, *storage_errors()):
            text, version = self._file.read()
            found = _owner(text)
            if found and found.token == self._owner.token:
                self._file.remove(version)

    def lost_to(self) -> Owner | None:
        return self._lost_to
