"""Runs a command as several processes of one JAX job on this machine: `launch/local.sh --processes=N`.

Environment variables give every process the address of the coordinator, the number of processes and its own number.
Process 0 writes directly to the terminal. The lines of the other processes begin with their number. If one process
fails, the others are stopped. Its exit code (128 + n for signal n) becomes the exit code of this program. If this
program is killed, a watcher stops the processes. The program needs only the standard library.
"""

import argparse
import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import BinaryIO

# Seconds between SIGTERM and SIGKILL after one process has failed. A stopped or hung process never ends by itself.
_GRACE_SECONDS = 10.0
# Seconds between a signal to this program and SIGKILL. The processes may write a last checkpoint.
_STOP_SECONDS = 120.0
# The lock keeps the lines of different processes apart.
_OUTPUT = threading.Lock()


def main() -> int:
    """Runs the processes. Returns the exit code of the first process that fails, or 0 if none fails."""
    options = _parse_arguments()
    job = _Job(_start_watcher())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP, and its children must too
            signal.signal(number, lambda number, _: job.stop(number))
    job.start(options.command, options.processes, options.devices)
    return job.wait()


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='launch/local.sh', description=__doc__, allow_abbrev=False)
    parser.add_argument('--processes', type=_at_least_one, required=True, metavar='N', help='number of processes')
    parser.add_argument('--devices', type=_at_least_one, metavar='M', help='CPU devices per process')
    parser.add_argument('command', nargs=argparse.REMAINDER)
    return parser.parse_args()


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} must be a whole number > 0, for example 2')
    return int(text)


class _Job:
    """The processes of the job, from start to end."""

    def __init__(self, watcher: int):
        self._watcher = watcher
        self._ended: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._told_to_stop = False
        self._deadline: float | None = None
        self._seconds = 0.0
        self._processes: list[subprocess.Popen] = []
        self._relays: list[threading.Thread] = []

    def start(self, command: list[str], processes: int, devices: int | None) -> None:
        address = f'127.0.0.1:{_free_port()}'
        for index in range(processes):
            self._start_process(index, command, _environment(address, processes, index, devices))
        if self._told_to_stop:  # a signal arrived during the starts
            self._send(signal.SIGTERM)

    def _start_process(self, index: int, command: list[str], variables: dict[str, str]) -> None:
        output = None if index == 0 else subprocess.PIPE
        # A process in its own session receives Ctrl-C once from here, and not a second time from the terminal.
        process = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        self._processes.append(process)
        os.write(self._watcher, f'{process.pid}\n'.encode())
        threading.Thread(target=lambda: (process.wait(), self._ended.put(index)), daemon=True).start()
        if index:
            for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                relay = threading.Thread(target=_copy_lines, args=(source, sink.buffer, f'[{index}] '), daemon=True)
                relay.start()
                self._relays.append(relay)

    def stop(self, number: int) -> None:
        """Passes a signal on to every process. The second signal kills them, and so does a deadline."""
        if self._told_to_stop:
            self._kill()
        else:
            # A lost terminal (SIGHUP) is a request to end. SIGTERM makes the processes save first.
            self._send(signal.SIGTERM if number == signal.SIGHUP else number)
            self._end_within(_STOP_SECONDS)
        self._told_to_stop = True

    def _end_within(self, seconds: float) -> None:
        """Sets the time at which all that still run are killed, unless an earlier one is set."""
        deadline = time.monotonic() + seconds
        if self._deadline is None or deadline < self._deadline:
            self._deadline, self._seconds = deadline, seconds
            self._ended.put(None)  # wait() looks at the deadline again

    def wait(self) -> int:
        """Waits until all have ended. Returns the exit code of the first process that failed, or 0 if none failed."""
        code, running = 0, len(self._processes)
        while running:
            try:
                index = self._ended.get(timeout=self._deadline and max(0.0, self._deadline - time.monotonic()))
            except queue.Empty:
                _tell(f'{self._running()} did not stop within {self._seconds:.0f} s: killed')
                self._kill()
                self._deadline = None
                continue
            if index is None:
                continue
            running -= 1
            how = self._processes[index].returncode
            if how and not code:
                code = how if how > 0 else 128 - how
                _tell(f'process {index} {_in_words(how)}' + ('; stopping the others' if running else ''))
                if not self._told_to_stop:
                    self._send(signal.SIGTERM)
                self._end_within(_GRACE_SECONDS)
        os.write(self._watcher, b'end\n')
        for relay in self._relays:
            relay.join(timeout=_GRACE_SECONDS)
        return code

    def _running(self) -> str:
        indices = [str(index) for index, process in enumerate(self._processes) if process.returncode is None]
        return ('process ' if len(indices) == 1 else 'processes ') + ', '.join(indices)

    def _send(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)

    def _kill(self) -> None:
        """Kills the processes and all their children, which would keep the output open."""
        for process in self._processes:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _start_watcher() -> int:
    """Starts a process that stops the job if this program is killed.

    Returns:
        The writing end of a pipe to the watcher. It takes process numbers, and 'end' after the end of the job.
    """
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(reading)
        os.waitpid(child, 0)
        return writing
    os.setsid()  # what kills the group of this program leaves the watcher alive
    if os.fork():
        os._exit(0)  # the watcher is no child of this program, whose children are the processes of the job
    os.close(writing)
    silent = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)
    with open(reading) as pipe:
        lines = pipe.read().split()
    if 'end' not in lines:
        _stop_groups([int(line) for line in lines])
    os._exit(0)


def _stop_groups(leaders: list[int]) -> None:
    """Sends SIGTERM to process groups, and SIGKILL after _GRACE_SECONDS."""
    deadline = time.monotonic() + _GRACE_SECONDS
    leaders = [leader for leader in leaders if _signal_group(leader, signal.SIGTERM)]
    while leaders and time.monotonic() < deadline:
        time.sleep(0.1)
        leaders = [leader for leader in leaders if _signal_group(leader, 0)]
    for leader in leaders:
        _signal_group(leader, signal.SIGKILL)


def _signal_group(leader: int, number: int) -> bool:
    """Returns whether the group still exists."""
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):  # macOS: a group of zombies
        return False
    return True


def _environment(address: str, processes: int, index: int, devices: int | None) -> dict[str, str]:
    """Environment variables with which a process joins the job. It runs on the CPU unless JAX_PLATFORMS is set."""
    variables = {
        'JAX_PLATFORMS': 'cpu',
        **os.environ,
        'JAX_COORDINATOR_ADDRESS': address,
        'JAX_NUM_PROCESSES': str(processes),
        'JAX_PROCESS_ID': str(index),
    }
    return variables if devices is None else {**variables, 'JAX_NUM_CPU_DEVICES': str(devices)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def _copy_lines(source: BinaryIO, sink: BinaryIO, prefix: str) -> None:
    for line in source:
        with _OUTPUT:
            sink.write(prefix.encode() + line.rstrip(b'\n') + b'\n')
            sink.flush()


def _in_words(returncode: int) -> str:
    if returncode > 0:
        return f'ended with exit code {returncode}'
    return f'was killed by {signal.Signals(-returncode).name}'


def _tell(message: str) -> None:
    with _OUTPUT:
        print(f'launch/local.sh: {message}', file=sys.stderr, flush=True)


if __name__ == '__main__':
    sys.exit(main())
