"""Standard output and error that never end a command: a reader that has gone, a full disk, an encoding of ASCII."""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator

# Signs of the program's own texts, for encodings without them. All other signs become escapes.
_IN_ASCII = {'±': '+-', '…': '...', '→': '->', '×': 'x', '–': '-'}
_ERRORS = 'simclr.plain'


class Output:
    """What has become of standard output.

    Attributes:
        sentence: What the user has without output. It is said when the output is lost, unless it is ''.
        error: Why the output is lost. None as long as it can be written.
    """

    def __init__(self):
        self.sentence = ''
        self.error: OSError | None = None

    def lose(self, error: OSError) -> None:
        """Notes the first error of writing, and says it on standard error."""
        self.error = error
        if self.sentence:
            print(f'simclr: the output is lost ({error.strerror}). {self.sentence}', file=sys.stderr, flush=True)


@contextlib.contextmanager
def steady() -> Iterator[Output]:
    """Makes both streams steady, for a `with` block. Streams that Python code has replaced stay as they are.

    * Output that cannot be written is dropped from then on. The command goes on.
    * A sign that the encoding lacks is written in ASCII.
    * A stream that was closed before the start takes everything and keeps nothing.

    Yields:
        What becomes of the output.
    """
    codecs.register_error(_ERRORS, _plain)
    _open_closed()
    before, output = (sys.stdout, sys.stderr), Output()
    sys.stderr = _steady(sys.stderr, sys.__stderr__, lambda error: None)
    sys.stdout = _steady(sys.stdout, sys.__stdout__, output.lose)
    try:
        yield output
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replaces what an encoding lacks, as an error handler of `codecs`."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    written = (_IN_ASCII.get(letter) or letter.encode('ascii', 'backslashreplace').decode() for letter in letters)
    return ''.join(written), error.end


def _open_closed() -> None:
    """Opens streams that were closed before the start. A data file could get their numbers otherwise."""
    for number, name in enumerate(('stdin', 'stdout', 'stderr')):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            # The system gives the lowest free number.
            os.open(os.devnull, os.O_RDWR)
        setattr(sys, name, open(os.devnull, 'w' if number else 'r', errors=_ERRORS))  # noqa: SIM115


def _steady(stream, original, tell: Callable[[OSError], None]):
    """A stream that drops what cannot be written. A stream that is not the process's own stays."""
    if stream is not original or not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(stream.fileno(), tell)),
        encoding=stream.encoding,
        errors=_ERRORS,
        line_buffering=stream.line_buffering,
    )


class _Descriptor(io.FileIO):
    """A descriptor to write to. After the first error it takes everything and keeps nothing.

    Args:
        number: Number of the descriptor, which stays open.
        tell: Function that receives the first error.
    """

    def __init__(self, number: int, tell: Callable[[OSError], None]):
        super().__init__(number, 'wb', closefd=False)
        self._tell, self._is_lost = tell, False

    def write(self, data) -> int:
        """Writes bytes or drops them. Returns their number."""
        if not self._is_lost:
            try:
                return super().write(data)
            except OSError as error:
                self._is_lost = True
                self._tell(error)
        return memoryview(data).nbytes
