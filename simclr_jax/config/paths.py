"""Paths as users write them, and the error of a wrong setting."""

import contextlib
import os
from collections.abc import Iterator, Sequence

from etils import epath

FOLDER = 'folder:'


class ConfigError(ValueError):
    """A mistake in the user's settings.

    Args:
        problems: One message per problem. Each names the value, the rule and the cure.
    """

    def __init__(self, problems: Sequence[str]):
        super().__init__('\n'.join(problems))
        self.problems = list(problems)


def user_path(text: str) -> str:
    """Expands ~ and ~NAME at the beginning of a path, also behind 'folder:'.

    A shell expands them only at the beginning of a word, so not in --workdir=~/runs.

    Args:
        text: Path, local or gs://, or a name that is no path.

    Returns:
        The path without ~. Any other text comes back unchanged.

    Raises:
        ConfigError: There is no home directory to put in the place of ~.

    Example:
        >>> user_path('runs/digits'), user_path('gs://bucket/run')
        ('runs/digits', 'gs://bucket/run')
    """
    prefix = FOLDER if text.startswith(FOLDER) else ''
    path = text.removeprefix(prefix)
    if not path.startswith('~'):
        return text
    expanded = os.path.expanduser(path)
    if expanded.startswith('~'):
        home = path.split(os.sep)[0]
        raise ConfigError(
            [f'{text}: there is no home directory {home}; write the whole path, or ./{path} for a file of that name']
        )
    return prefix + expanded


def directory_path(text: str) -> str:
    """The path of a directory or file that must be named, with ~ expanded.

    Args:
        text: Path, local or gs://.

    Raises:
        ConfigError: The path is empty, or `user_path` cannot expand it.
    """
    if not text.strip():
        raise ConfigError([f"'{text}' names no file or directory; give a path, for example runs/digits"])
    return user_path(text)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Names a file in the errors of its block. The system's error of a write names none.

    Raises:
        OSError: The block's error, with the path.
    """
    try:
        yield
    except OSError as error:
        if error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path lies in a storage such as gs://, where the functions of the operating system do not reach.

    Args:
        path: Path, local or remote.
    """
    return '://' in os.fspath(path)


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """The whole path of a file or directory. A remote path is whole already.

    Args:
        path: Path, local or remote.

    Example:
        >>> absolute('gs://bucket/run')
        PosixGPath('gs://bucket/run')
    """
    place = epath.Path(path)
    return place if is_remote(place) else place.absolute()


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file, local or remote, at a path in which ~ is expanded."""
    place = epath.Path(path)
    return place.exists() and not place.is_dir()


def printable(path: str | os.PathLike[str]) -> str:
    """A path or name as text for one line of a message: what cannot be printed becomes an escape.

    Args:
        path: Path or name of a file, which may hold any byte but 0.

    Example:
        >>> printable('two\\nlines'), printable('caf\\udce9')
        ('two\\\\nlines', 'caf\\\\xe9')
    """
    return ''.join(letter if letter.isprintable() else _escaped(letter) for letter in os.fspath(path))


def _escaped(letter: str) -> str:
    # Python has these in the place of bytes that are not UTF-8.
    if '\udc80' <= letter <= '\udcff':
        return f'\\x{ord(letter) - 0xDC00:x}'
    return letter.encode('unicode_escape').decode('ascii')
