"""Files that are written completely or not at all."""

import contextlib
import hashlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from typing import IO

from etils import epath

from simclr_jax.config.paths import is_remote, naming
from simclr_jax.config.storage import storage_errors


def write_whole(path: epath.Path, content: str | Callable[[IO[bytes]], None]) -> None:
    """Writes a file completely or not at all: a reader finds the old content or the new one, never a part of it.

    The content goes to `NAME.WRITER.partial` in the same directory, which then takes the place of the file. WRITER
    differs between threads and machines, so that two of them may write the same file. If an error interrupts the
    writing, the old file stays and the new one is removed. For gs:// the content is made in a temporary file first,
    because writers of archives go back in their file.

    Args:
        path: File to write, local or gs://. Its directory must exist.
        content: Text, written as UTF-8, or a function that writes to the given binary file.

    Raises:
        OSError: The file cannot be written. The error names it.
        Exception: Any error of `content` itself.
    """
    partial = path.with_name(f'{path.name}.{writer_name()}.partial')
    try:
        # An error of opening would name the partial file.
        with naming(path):
            with partial.open('wb') as file:
                if isinstance(content, str):
                    file.write(content.encode())
                elif is_remote(path):
                    with tempfile.TemporaryFile() as made:
                        content(made)
                        made.seek(0)
                        shutil.copyfileobj(made, file)
                else:
                    content(file)
            partial.replace(path)
    except BaseException:
        # The reader needs the first error, not a second one about the cleaning up.
        with contextlib.suppress(OSError, *storage_errors()):
            partial.unlink(missing_ok=True)
        raise


def writer_name() -> str:
    """Text that differs between threads, processes and machines. A process that starts again may get the same."""
    name = f'{socket.gethostname()} {threading.get_native_id()}'
    return hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
