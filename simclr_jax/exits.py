"""How a command ends: its exit codes, and the signals that end it. No JAX."""

import signal

USER_MISTAKE, START_AGAIN, FAILURE = 2, 42, 1

# A scheduler ends a process by SIGTERM, Ctrl-C by SIGINT, a lost terminal by SIGHUP.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# A closed terminal sends the same signal more than once. After this number of seconds it is a second wish.
SAME = 1.0
