"""Ends a process of a job soon after another one is lost, with the exit code for a restart and one line.

JAX's coordination service would abort the process instead, with a stack trace of C++ and exit code 134. So
`distributed.start` sets jax_enable_recoverability. Then the processes must also end in order by themselves: see
`Watch.leave`.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
from typing import NoReturn

import jax
from jax._src import distributed

from simclr_jax.exits import START_AGAIN

# Seconds between two questions to the coordination service, which runs in process 0.
INTERVAL = 1.0
# Process 0 is lost after this number of questions without an answer. JAX itself would abort 5 seconds later.
SILENCE = 15
# Process 0 keeps the service alive for this number of seconds, so that the others can still learn of a loss.
FAREWELL = 3.0
# Seconds that a process waits for the others after all have agreed to end.
PATIENCE = 30.0
# The entry of the service that names a process which ended by itself because of an error.
LOST = 'simclr/lost'


class Watch:
    """Watches the other processes of the job from threads of its own.

    The service hears the heartbeats of all processes, which JAX sends without the interpreter. A process that computes
    or compiles for a long time is not lost. To be made after `jax.distributed.initialize`.
    """

    def __init__(self):
        state = distributed.global_state
        assert state.client
        self._client, self._index = state.client, state.process_id
        self._all = set(range(state.num_processes))
        self._stopped, self._agreed, self._left = threading.Event(), False, False
        self._telling, self._unanswered = threading.Lock(), 0
        for watcher in (self._ask_who_lives, self._ask_for_news, self._count_silence):
            threading.Thread(target=watcher, daemon=True).start()
        atexit.register(self.leave)

    def agree(self) -> None:
        """Ends the watch. To be called when all processes know that they end."""
        self._agreed = True
        self._stopped.set()

    def leave(self) -> None:
        """Leaves the job: after all others if all have agreed to end, otherwise at once, and the others learn of it."""
        if self._left:
            return
        self._left = True
        self._stopped.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if self._agreed:
                self._client.wait_at_barrier('simclr/the end', int(1000 * PATIENCE))
                self._wait_until_the_others_left()
            else:
                self._client.key_value_set(LOST, f'process {self._index}', allow_overwrite=True)
                self._say_farewell()
        jax.distributed.shutdown()

    def end_for_a_loss(self, lost: str) -> NoReturn:
        """Ends this process with START_AGAIN. An orderly end would wait for the lost process.

        Args:
            lost: Name of the lost process. The first call prints it.
        """
        with self._telling:
            if not self._stopped.is_set():
                self._stopped.set()
                sys.stderr.write(f'simclr: {lost} of this job is lost; start the whole job again\n')
                sys.stderr.flush()
        self._say_farewell()
        os._exit(START_AGAIN)

    def _say_farewell(self) -> None:
        """Gives the others time to learn from the service, which ends with process 0."""
        if self._index == 0:
            time.sleep(FAREWELL)

    def _wait_until_the_others_left(self) -> None:
        if self._index == 0:
            question = threading.Thread(target=self._living, daemon=True)
            question.start()
            question.join(PATIENCE)

    def _living(self) -> set[int] | None:
        """Processes that live, or None if the service is gone. The answer waits for the question of each of them."""
        try:
            return set(self._client.get_live_nodes(sorted(self._all)))
        except jax.errors.JaxRuntimeError:
            return None

    def _ask_who_lives(self) -> None:
        while not self._stopped.wait(INTERVAL):
            living = self._living()
            lost = [0] if living is None else sorted(self._all - living)
            if lost:
                self._end(('process ' if len(lost) == 1 else 'processes ') + ', '.join(map(str, lost)))

    def _ask_for_news(self) -> None:
        while not self._stopped.wait(INTERVAL):
            try:
                self._end(self._client.key_value_try_get(LOST))
            except jax.errors.JaxRuntimeError as error:
                if 'NOT_FOUND' in str(error):
                    self._unanswered = 0

    def _count_silence(self) -> None:
        # Questions are counted, not seconds of a clock, because this process itself may have been stopped for a while.
        while not self._stopped.wait(INTERVAL):
            self._unanswered += 1
            if self._unanswered > SILENCE:
                self._end('process 0')

    def _end(self, lost: str) -> None:
        if not self._stopped.is_set():
            self.end_for_a_loss(lost)
