"""What the errors of Orbax and tensorstore mean for a user: damage, a place that cannot be reached, or a bad path."""

import contextlib
import errno
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator

from simclr_jax.config.storage import storage_errors

# Orbax looks for the parts of a checkpoint by patterns that begin with its path. In a pattern these are no letters.
PATTERN_CHARACTERS = '[*?\\'
# Statuses of tensorstore, and what they mean for files that were complete once.
MEANINGS = {
    'NOT_FOUND': 'a file is missing',
    'OUT_OF_RANGE': 'a file is cut short',
    'DATA_LOSS': 'a file has changed since it was written',
    'FAILED_PRECONDITION': 'a file has changed since it was written',
    'INVALID_ARGUMENT': 'a file has changed since it was written',
}
# Errors of a disk, a network or permissions. The files behind them may be good.
OUT_OF_REACH = ('UNAVAILABLE', 'DEADLINE_EXCEEDED', 'PERMISSION_DENIED', 'UNAUTHENTICATED', 'RESOURCE_EXHAUSTED')
OUT_OF_REACH_NUMBERS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENOMEM),
    *(errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ESTALE, errno.EHOSTUNREACH, errno.ENETUNREACH),
)


class CheckpointError(ValueError):
    """No checkpoint can be used, or one cannot be written. The message names the directory and the cure."""


def check_path(directory: str) -> None:
    """Refuses paths under which Orbax writes checkpoints that it cannot read.

    Raises:
        CheckpointError: The path contains one of PATTERN_CHARACTERS, or is not UTF-8.
    """
    cure = 'rename it, or reach it by a symbolic link with another name'
    found = next((letter for letter in PATTERN_CHARACTERS if letter in directory), None)
    if found:
        raise CheckpointError(f'{directory}: checkpoints cannot be read below a path that contains {found}; {cure}')
    try:
        directory.encode()
    except UnicodeEncodeError:
        raise CheckpointError(
            f'{os.fsencode(directory)!r}: checkpoints cannot be written below a path that is not UTF-8; {cure}'
        ) from None


def is_damage(error: BaseException) -> bool:
    """Whether an error of reading means damaged files. Otherwise they could not be reached, and may be good."""
    text = _whole_text(error)
    # Of the errors of a storage, only that of a missing object is damage, and that is a FileNotFoundError.
    if isinstance(error, storage_errors()):
        return False
    return not any(word in text for word in (*OUT_OF_REACH, *map(os.strerror, OUT_OF_REACH_NUMBERS)))


def reason(error: BaseException) -> str:
    """What a user can use of an error: a few words without the state of C++ objects."""
    if isinstance(error, CheckpointError):
        return str(error)
    text = _whole_text(error)
    for phrase in map(os.strerror, OUT_OF_REACH_NUMBERS):
        if phrase in text:
            return phrase
    if isinstance(error, (json.JSONDecodeError, KeyError, UnicodeDecodeError)):
        return 'a file that describes it has changed since it was written'
    if isinstance(error, FileNotFoundError):
        return MEANINGS['NOT_FOUND']
    for status in (*OUT_OF_REACH, *MEANINGS):
        if status in text:
            return MEANINGS.get(status, status.lower().replace('_', ' '))
    if 'pytree' in text:
        return 'its description is not that of these arrays'
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    line = re.split(r'\. See full TensorStore|<bound method|\(#define| \[source locations|\[tensorstore_spec', line)[0]
    return line[:200].strip() or type(error).__name__


def _whole_text(error: BaseException) -> str:
    """The texts of an error and its causes. Orbax wraps the error of tensorstore that names the status."""
    texts, seen = [], set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        texts.append(str(current))
        current = current.__cause__ or current.__context__
    return '\n'.join(texts)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what a failed restore leaves behind: its futures, coroutines and log would fill pages when collected.

    After a failure call `gc.collect()` inside of the block. Without one, it would cost a second for nothing.
    """
    loggers = [logging.getLogger(name) for name in ('asyncio', 'absl')]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda unraisable: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', RuntimeWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        sys.unraisablehook = hook
