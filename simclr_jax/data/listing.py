"""The image files below a directory, local or gs://, and what is left out of them."""

import collections
import dataclasses
import os
from collections.abc import Iterator

from etils import epath

from simclr_jax.config.paths import is_remote, printable

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif')
# Directories that programs make beside the images: archives of macOS, and the thumbnails of network drives.
_SYSTEM = ('__MACOSX', '@eaDir')
_EXAMPLES = 3

# Kinds of entries that are left out.
_HIDDEN_DIRECTORY, _HIDDEN_FILE = 'hidden directories', 'hidden files'
_BROKEN, _AGAIN = 'broken links', 'links to directories that are listed already'
_LOCKED, _NOT_UTF8 = 'directories that cannot be opened', 'names that are not UTF-8'
_OTHER = 'files that are no images'


@dataclasses.dataclass(frozen=True)
class Listing:
    """Image files below a directory.

    Attributes:
        paths: Paths of the files, sorted.
        left_out: One line about entries that are left out, '' if there are none.
    """

    paths: list[str]
    left_out: str


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One entry of a directory. `kind` is 'directory', 'file' or 'other', `link` tells a symbolic link."""

    path: str
    name: str
    kind: str
    link: bool = False


class _LeftOut:
    """Counts what is left out, with a few examples of each kind."""

    def __init__(self) -> None:
        self._counts = collections.Counter()
        self._examples: dict[str, dict[str, None]] = {}

    def add(self, kind: str, example: str) -> None:
        self._counts[kind] += 1
        self._examples.setdefault(kind, {})[example] = None

    def line(self) -> str:
        """All kinds in one line."""
        told = []
        for kind, count in self._counts.items():
            examples = [printable(example) for example in self._examples[kind]]
            more = ', ...' if len(examples) > _EXAMPLES else ''
            told.append(f'{count:,} {kind} ({", ".join(examples[:_EXAMPLES])}{more})')
        return ', '.join(told)


def list_images(base: str) -> Listing:
    """Lists the files below a directory that are images by their names, at any depth.

    Links are followed, but each directory is listed once, by its real place. Links to a directory above end there.

    Args:
        base: Directory, local or gs://.

    Raises:
        OSError: The directory itself cannot be listed.
    """
    paths, left_out, seen = [], _LeftOut(), _above(base)
    # Links wait until all real directories are known, so that a class is called by its own name.
    waiting, links = [base], collections.deque[_Entry]()
    while waiting or links:
        if waiting:
            directory = waiting.pop()
        else:
            link = links.popleft()
            if not _is_new(link.path, seen):
                left_out.add(_AGAIN, link.name)
                continue
            directory = link.path
        try:
            entries = sorted(_entries(directory), key=lambda entry: entry.name)
        except PermissionError:
            if directory == base:
                raise
            left_out.add(_LOCKED, os.path.basename(directory))
            continue
        for entry in entries:
            reason = _reason(entry)
            if reason:
                left_out.add(*reason)
            elif entry.kind == 'file':
                paths.append(entry.path)
            elif entry.link:
                links.append(entry)
            elif _is_new(entry.path, seen):
                waiting.append(entry.path)
    return Listing(sorted(paths), left_out.line())


def _reason(entry: _Entry) -> tuple[str, str] | None:
    """Why an entry is left out, with an example of the kind. None for a directory or an image."""
    if not _is_utf8(entry.name):
        return _NOT_UTF8, entry.name
    is_directory = entry.kind == 'directory'
    if entry.name.startswith('.') or (is_directory and entry.name in _SYSTEM):
        return (_HIDDEN_DIRECTORY if is_directory else _HIDDEN_FILE), entry.name
    if is_directory:
        return None
    extension = os.path.splitext(entry.name)[1].lower()
    if extension not in EXTENSIONS:
        return _OTHER, extension or entry.name
    if entry.kind == 'file':
        return None
    return (_BROKEN if entry.link else _OTHER), entry.name


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _entries(directory: str) -> Iterator[_Entry]:
    if not is_remote(directory):
        with os.scandir(directory) as entries:
            for entry in entries:
                yield _Entry(entry.path, entry.name, _kind(entry), entry.is_symlink())
        return
    for path in epath.Path(directory).iterdir():
        # A question about each image would be a request to the storage.
        is_file = path.suffix.lower() in EXTENSIONS or not path.is_dir()
        yield _Entry(os.fspath(path), path.name, 'file' if is_file else 'directory')


def _kind(entry: os.DirEntry) -> str:
    try:
        return 'directory' if entry.is_dir() else 'file' if entry.is_file() else 'other'
    except OSError:
        # A link to itself.
        return 'other'


def _above(base: str) -> set[tuple[int, int] | str]:
    """Identities of a directory and of all above it."""
    seen = set()
    if not is_remote(base):
        place = os.path.realpath(base)
        while _is_new(place, seen):
            place = os.path.dirname(place)
    return seen


def _is_new(directory: str, seen: set[tuple[int, int] | str]) -> bool:
    """Whether a directory was not seen before. Now it is."""
    if is_remote(directory):
        identity = directory
    else:
        status = os.stat(directory)
        # Some network file systems number nothing.
        identity = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(directory)
    is_new = identity not in seen
    seen.add(identity)
    return is_new
