"""The processes of a job: how they find each other, agree and end together.

If one process is lost, the others end too, wherever they wait: see `liveness`.
"""

import os
import pickle
import signal
import threading
import time
import types
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from simclr_jax import liveness
from simclr_jax.config import ConfigError
from simclr_jax.exits import SAME, SIGNALS

# A process counts as lost after this number of seconds without a heartbeat.
HEARTBEAT_TIMEOUT = 20
# A process that has ended waits this number of seconds for the others to end.
SHUTDOWN_TIMEOUT = 30
# All processes must start within this number of seconds.
START_TIMEOUT = 300
# With JAX_COORDINATOR_ADDRESS, these variables may hold the number of processes and the index of this process.
COUNTS = ('JAX_NUM_PROCESSES', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')
NUMBERS = ('JAX_PROCESS_ID', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')

Result = TypeVar('Result')
# The watch on the other processes, from `start` to `leave_together`.
_watch: liveness.Watch | None = None


class FailedElsewhere(RuntimeError):
    """Another process of the job has reported a mistake of the user."""


class LostError(RuntimeError):
    """Another process of the job is lost. The job can resume if it is started again."""


def start(*, saves: bool = True) -> None:
    """Joins the other processes of the job, if there are any. To be called before any other use of JAX.

    One or several TPU slices, GKE, Slurm's srun and Open MPI are recognised. Everywhere else the environment variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID describe the job.

    Args:
        saves: Whether this command saves its state after SIGTERM. JAX then receives this signal, see `Preemption`.

    Raises:
        ConfigError: The environment describes the job incompletely.
        LostError: The other processes did not start within START_TIMEOUT seconds.
    """
    arguments = find_job(os.environ, has_tpu())
    if arguments is None:
        return
    global _watch
    # JAX's service must not abort this process when another one is lost. `liveness` ends it in order.
    jax.config.update('jax_enable_recoverability', True)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(
            **arguments,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
            initialization_timeout=START_TIMEOUT,
        )
    except ValueError as error:
        raise ConfigError([f'the environment describes this job incompletely: {error}; see launch/']) from error
    except RuntimeError as error:
        raise LostError(f'the processes of this job did not find each other: {str(error).splitlines()[0]}') from error
    _watch = liveness.Watch()
    if not saves and handler is not None:
        signal.signal(signal.SIGTERM, handler)


def tells_of_a_loss(error: Exception) -> bool:
    """Whether an error of JAX means that another process of this job is lost."""
    is_one_of_several = jax.distributed.is_initialized() and jax.process_count() > 1
    return is_one_of_several and any(word in str(error) for word in ('Gloo', 'UNAVAILABLE', 'ABORTED', 'heartbeat'))


def find_job(environment: Mapping[str, str], has_tpu: bool) -> dict[str, Any] | None:
    """Finds the arguments of `jax.distributed.initialize`.

    Args:
        environment: Environment variables of the process.
        has_tpu: Whether this machine has a TPU.

    Returns:
        The arguments. {} if JAX detects the job itself. None if this process is alone and must not call it.

    Raises:
        ConfigError: The environment describes the job incompletely.
    """
    address = environment.get('JAX_COORDINATOR_ADDRESS')
    if address:
        return {
            'coordinator_address': address,
            'num_processes': _integer(environment, COUNTS),
            'process_id': _integer(environment, NUMBERS),
            'cluster_detection_method': 'deactivate',
        }
    # Open MPI 5 does not publish the address of its launcher.
    if int(environment.get('OMPI_COMM_WORLD_SIZE', 1)) > 1 and 'OMPI_MCA_orte_hnp_uri' not in environment:
        raise ConfigError(
            [
                f'OMPI_COMM_WORLD_SIZE={environment["OMPI_COMM_WORLD_SIZE"]}: this Open MPI does not publish the '
                'address of process 0; give it by mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT, with a free port'
            ]
        )
    in_srun = 'SLURM_STEP_NODELIST' in environment and int(environment.get('SLURM_NTASKS', 1)) > 1
    if in_srun or 'OMPI_MCA_orte_hnp_uri' in environment:
        return {}
    if not has_tpu:
        return None
    hosts = environment.get('TPU_PROCESS_ADDRESSES') or environment.get('TPU_WORKER_HOSTNAMES')
    if hosts is None:
        # On a TPU VM, JAX asks the metadata server. Where it must not be asked, as on Colab, there is only one host.
        return None if 'TPU_SKIP_MDS_QUERY' in environment else {}
    is_alone = ',' not in hosts and int(environment.get('MEGASCALE_NUM_SLICES', 1)) == 1
    return None if is_alone else {}


def _integer(environment: Mapping[str, str], names: tuple[str, ...]) -> int:
    for name in names:
        if name in environment:
            try:
                return int(environment[name])
            except ValueError:
                raise ConfigError([f'{name}={environment[name]}: must be an integer']) from None
    raise ConfigError([f'JAX_COORDINATOR_ADDRESS is set, but none of {", ".join(names)}; set {names[0]}'])


def has_tpu() -> bool:
    """Whether this machine has a TPU. The question does not involve JAX, which would open the TPU."""
    return any(any(epath.Path('/dev').glob(pattern)) for pattern in ('accel*', 'vfio/*'))


def is_first() -> bool:
    """Whether this process is the one that writes files and messages."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line for the user, once per job."""
    if is_first():
        print(text, flush=True)


def wait_for_all(reason: str) -> None:
    """Waits until every process of the job has made the same call.

    Args:
        reason: Name of the call, the same in all processes.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(reason)


def leave_together() -> None:
    """Ends the job when every process has made this call.

    The first process may still write for a long time. Without this call, the interpreter of a process that ends early
    would wait only SHUTDOWN_TIMEOUT seconds for the others.
    """
    if jax.distributed.is_initialized():
        wait_for_all('the end')
        _agree_to_end()
        if _watch:
            _watch.leave()


def end_for_a_loss() -> NoReturn:
    """Ends this process of several with a message and exits.START_AGAIN, because another one is lost."""
    assert _watch
    _watch.end_for_a_loss('another process')


def _agree_to_end() -> None:
    """To be called when all processes know that they end."""
    if _watch:
        _watch.agree()


def together(action: Callable[[], Result], mistakes: tuple[type[Exception], ...]) -> Result:
    """Calls a function in every process. A mistake of the user in one process stops all processes.

    Args:
        action: Function without arguments.
        mistakes: Exceptions that stop all processes.

    Returns:
        The result of the function in this process.

    Raises:
        mistakes: The function raised one of them in this process.
        FailedElsewhere: The function raised one of them in another process.
    """
    try:
        result = action()
    except mistakes:
        _of_all(True)
        _agree_to_end()
        raise
    failed = np.flatnonzero(_of_all(False))
    if failed.size:
        _agree_to_end()
        raise FailedElsewhere(f'process {failed[0]} stopped, see its message')
    return result


def from_first(action: Callable[[], Result], mistakes: tuple[type[Exception], ...]) -> Result:
    """Calls a function in the first process only, and gives its result to all.

    Args:
        action: Function without arguments, whose result can be pickled. It must not wait for other processes.
        mistakes: Exceptions that stop all processes, see `together`.

    Returns:
        The result of the function in the first process.
    """
    if jax.process_count() == 1:
        return action()
    # JAX's first exchange must not take longer than 30 seconds. Every later one waits as long as the action takes.
    _of_all(True)
    result = together(lambda: action() if is_first() else None, mistakes)
    content = np.frombuffer(pickle.dumps(result), np.uint8)
    size = multihost_utils.broadcast_one_to_all(np.int32(content.size))
    sent = multihost_utils.broadcast_one_to_all(content if is_first() else np.zeros(size, np.uint8))
    return pickle.loads(np.asarray(sent).tobytes())


def as_first(statement: bool) -> bool:
    """The first process's answer to a question that only a clock can answer, in every process."""
    return bool(_of_all(statement)[0])


def all_agree(statement: bool) -> bool:
    """Whether a statement is true in every process."""
    return bool(_of_all(statement).all())


def _of_all(statement: bool) -> np.ndarray:
    """Gathers a statement from all processes, bool [processes]."""
    if jax.process_count() == 1:
        return np.array([statement])
    return np.asarray(multihost_utils.process_allgather(np.array(statement))).reshape(-1)


class Preemption:
    """Notices the signals that ask a run to end: SIGTERM of machines and schedulers, Ctrl-C, and a lost terminal.

    Only the first signal is noticed. One that comes more than a second later does what it would do outside of the
    `with` block. Outside of the main thread, where Python cannot receive signals, none is noticed.

    In a job of several processes, JAX's preemption service notices SIGTERM, and the other signals are passed on to it.
    It makes the processes agree on the step at which they stop, because the signal may reach only one of them.

    Attributes:
        number: Signal that came, or SIGTERM if another process of the job has received it.

    Example:
        >>> with Preemption() as preemption:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     print(preemption.is_due())
        True
    """

    def __init__(self):
        self.number = signal.SIGTERM
        self._told_at: float | None = None
        self._asked = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> 'Preemption':
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                is_jax_s = number == signal.SIGTERM and jax.process_count() > 1
                # nohup ignores SIGHUP, and background commands of a shell ignore SIGINT.
                if not is_jax_s and signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._tell)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _tell(self, number: int, frame: types.FrameType | None) -> None:
        if self._told_at is not None:
            if time.monotonic() - self._told_at < SAME:
                return
            before = self._before[signal.Signals(number)]
            if callable(before):
                before(number, frame)
            else:
                signal.signal(number, before)
                os.kill(os.getpid(), number)
            return
        self._told_at, self.number = time.monotonic(), signal.Signals(number)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def is_due(self) -> bool:
        """Whether to save and end now. All processes must ask equally often, after the same steps."""
        if jax.process_count() == 1:
            return self._told_at is not None
        # The processes agree on one of the next questions, which they recognise by its number.
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked)
