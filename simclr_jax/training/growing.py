"""A file that grows by whole records. Nothing can be appended to an object of a storage such as gs://."""

import time

from etils import epath

from simclr_jax.config.paths import is_remote, naming

# Seconds between two uploads of an object. A storage takes one a second, and each is a request that the run waits for.
INTERVAL = 10.0


class GrowingFile:
    """A file that grows. A local file has each record at once. An object is replaced by a longer one from time to time.

    Args:
        path: File, local or gs://. It may exist.
    """

    def __init__(self, path: epath.Path):
        self._path = path
        self._content: bytes | None = None
        self._uploaded, self._next_upload = 0, 0.0

    def append(self, record: bytes) -> None:
        """Appends a record. Of an object, `flush` or a later record completes it.

        Raises:
            OSError: The file cannot be written. The error names it. The storage may raise
                `config.storage.storage_errors`.
        """
        if not is_remote(self._path):
            with naming(self._path), self._path.open('ab') as file:
                file.write(record)
            return
        if self._content is None:
            self._content = self._path.read_bytes() if self._path.exists() else b''
            self._uploaded = len(self._content)
        self._content += record
        if time.monotonic() >= self._next_upload:
            self.flush()

    def flush(self) -> None:
        """Writes what is not in the object yet.

        Raises:
            OSError: See `append`.
        """
        if self._content is None or len(self._content) == self._uploaded:
            return
        # An object appears when it is complete, so that readers never find a part.
        with naming(self._path):
            self._path.write_bytes(self._content)
        self._uploaded, self._next_upload = len(self._content), time.monotonic() + INTERVAL
