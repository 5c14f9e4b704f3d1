"""Signals that end a command: Ctrl-C, SIGTERM and SIGHUP, with a true sentence and the right exit code."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable

from simclr_jax.exits import FAILURE, SAME, SIGNALS, START_AGAIN

# Seconds in which a command cleans up. Compilers and devices cannot be interrupted.
GRACE = 5.0


class Interrupted(KeyboardInterrupt):
    """A signal came while the command had nothing to save.

    Args:
        number: The signal.
    """

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.number = number


def code_of(number: signal.Signals) -> int:
    """Exit code after a signal. The launchers start a command again after SIGTERM and SIGHUP, not after Ctrl-C."""
    return FAILURE if number == signal.SIGINT else START_AGAIN


class Watch:
    """Ends a command at a signal, for a `with` block in the main thread. A second signal ends it at once, quietly.

    The first signal raises Interrupted, so that the command cleans up. If this takes longer than GRACE seconds, the
    process ends without it. Where `distributed.Preemption` is in force, the first signal is its own.

    Args:
        sentence: What to tell the user after a signal.
    """

    def __init__(self, sentence: Callable[[signal.Signals], str]):
        self._sentence, self._has_raised = sentence, False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> 'Watch':
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN):
            self._before[number] = signal.signal(number, self._end)
        # Python's own handlers run between two instructions of the main thread. The number of a signal arrives here
        # at once, even while the main thread compiles.
        self._received, self._sent = socket.socketpair()
        self._sent.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._sent.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._attend, name='signals', daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        if not self._before:
            return
        signal.set_wakeup_fd(self._wakeup)
        self._sent.close()
        self._thread.join()
        self._received.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _end(self, number: int, frame: types.FrameType | None) -> None:
        if not self._has_raised:
            self._has_raised = True
            raise Interrupted(signal.Signals(number))

    def _attend(self) -> None:
        first: float | None = None
        while received := self._received.recv(1):
            if received[0] not in SIGNALS:
                continue
            number = signal.Signals(received[0])
            if first is None:
                first = time.monotonic()
                if signal.getsignal(number) == self._end:
                    threading.Thread(target=self._end_after_grace, args=(number,), daemon=True).start()
            elif time.monotonic() - first > SAME:
                _end_now(code_of(number))

    def _end_after_grace(self, number: signal.Signals) -> None:
        self._thread.join(GRACE)
        if self._thread.is_alive():
            print(f'simclr: {self._sentence(number)}', file=sys.stderr, flush=True)
            _end_now(code_of(number))


def _end_now(code: int) -> None:
    if sys.stdout.isatty():
        # A progress bar has hidden the cursor.
        print('\x1b[?25h', end='')
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
