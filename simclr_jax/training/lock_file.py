"""Files that hold the name of an owner where the kernel has no locks: in Google's storage exactly, elsewhere as it can.

A version says which content a writer has seen. In Google's storage it is the generation of the object, and a write
over another generation is refused. Other places cannot refuse, so that the last writer is the owner.
"""

import contextlib
import time
from typing import Protocol

from etils import epath

from simclr_jax.config.storage import GCS, client

# Seconds between a claim and its confirmation, in which another process may have claimed too.
SETTLE = 1.0


class LockFile(Protocol):
    """A file with versions."""

    def read(self) -> tuple[str, int]:
        """The content and its version. ('', 0) if there is no file.

        Raises:
            OSError: The file cannot be read. A storage may raise `config.storage.storage_errors`.
        """
        ...

    def write(self, text: str, version: int, *, is_claim: bool = False) -> bool:
        """Writes the file over a version. False if another version is there.

        Args:
            text: Content.
            version: Version that the writer has read, 0 if there was no file.
            is_claim: Whether others may claim the file at the same time.

        Raises:
            OSError: The file cannot be written. A storage may raise `config.storage.storage_errors`.
        """
        ...

    def remove(self, version: int) -> None:
        """Removes the file, unless another version is there.

        Raises:
            OSError: The file cannot be removed. A storage may raise `config.storage.storage_errors`.
        """
        ...


def lock_file(path: epath.Path) -> LockFile:
    """The file of a lock at a path."""
    return _Object(str(path)) if str(path).startswith(GCS) else _PlainFile(path)


class _PlainFile:
    """A file of a file system, whose versions are all 1."""

    def __init__(self, path: epath.Path):
        self._path = path

    def read(self) -> tuple[str, int]:
        try:
            return self._path.read_text(), 1
        except FileNotFoundError:
            return '', 0

    def write(self, text: str, version: int, *, is_claim: bool = False) -> bool:
        self._path.write_text(text)
        if not is_claim:
            return True
        time.sleep(SETTLE)
        return self.read()[0] == text

    def remove(self, version: int) -> None:
        self._path.unlink(missing_ok=True)


class _Object:
    """An object of Google's storage."""

    def __init__(self, path: str):
        bucket, _, self._name = path.removeprefix(GCS).partition('/')
        self._bucket = client(needs_credentials=True).bucket(bucket)

    def read(self) -> tuple[str, int]:
        from google.api_core.exceptions import NotFound

        try:
            blob = self._bucket.get_blob(self._name)
            return (blob.download_as_text(), int(blob.generation)) if blob else ('', 0)
        except NotFound:  # It was removed since it was found.
            return '', 0

    def write(self, text: str, version: int, *, is_claim: bool = False) -> bool:
        from google.api_core.exceptions import PreconditionFailed

        try:
            self._bucket.blob(self._name).upload_from_string(text, if_generation_match=version)
        except PreconditionFailed:
            # A claim of this process may have arrived without its answer, and was sent again.
            return self.read()[0] == text
        return True

    def remove(self, version: int) -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with contextlib.suppress(NotFound, PreconditionFailed):
            self._bucket.blob(self._name).delete(if_generation_match=version)
