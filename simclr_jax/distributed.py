"""The processes of a job: how they find each other, agree, and end together.

A process that is lost takes the others down: JAX's coordination service misses its heartbeats and aborts them
(SIGABRT, with the number of the lost one in the message), wherever they wait.
"""

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from simclr_jax.config import ConfigError

# Seconds without a sign of life after which a process counts as lost; in which a process that has ended waits for
# the others to end as well; and in which all must have started.
HEARTBEAT_TIMEOUT = 20
SHUTDOWN_TIMEOUT = 30
START_TIMEOUT = 300
# Where the number of processes and the own number are found, beside an address in JAX_COORDINATOR_ADDRESS.
COUNTS = ('JAX_NUM_PROCESSES', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')
NUMBERS = ('JAX_PROCESS_ID', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')

Result = TypeVar('Result')


class FailedElsewhere(RuntimeError):
    """Another process of the job has told the user of a mistake."""


class LostError(RuntimeError):
    """Another process of the job is not there; started again, all of it may go on."""


def start() -> None:
    """Joins the other processes of the job, if there are any; before JAX is used otherwise.

    A TPU slice (also several), GKE, Slurm's srun and Open MPI are recognised; anywhere else JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID say it.

    Raises:
        ConfigError: the environment says it by halves.
        LostError: the others did not come within START_TIMEOUT seconds.
    """
    arguments = find_job(os.environ, has_tpu())
    if arguments is None:
        return
    limits = {
        'heartbeat_timeout_seconds': HEARTBEAT_TIMEOUT,
        'shutdown_timeout_seconds': SHUTDOWN_TIMEOUT,
        'initialization_timeout': START_TIMEOUT,
    }
    try:
        jax.distributed.initialize(**arguments, **limits)
    except ValueError as error:
        raise ConfigError([f'this job of several processes is not described well: {error}; see launch/']) from error
    except RuntimeError as error:
        raise LostError(f'the processes of this job did not find each other: {str(error).splitlines()[0]}') from error


def tells_of_a_loss(error: Exception) -> bool:
    """Whether an error of JAX means that another process cannot be reached any more."""
    is_one_of_several = jax.distributed.is_initialized() and jax.process_count() > 1
    return is_one_of_several and any(word in str(error) for word in ('Gloo', 'UNAVAILABLE', 'ABORTED', 'heartbeat'))


def find_job(environment: Mapping[str, str], has_tpu: bool) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is to be told: None: not to be called; {}: JAX finds out by itself.

    Args:
        environment: variables of the process.
        has_tpu: whether this machine has a TPU.

    Raises:
        ConfigError: see `start`.
    """
    address = environment.get('JAX_COORDINATOR_ADDRESS')
    if address:
        return {
            'coordinator_address': address,
            'num_processes': _integer(environment, COUNTS),
            'process_id': _integer(environment, NUMBERS),
            'cluster_detection_method': 'deactivate',
        }
    # Version 5 of Open MPI does not tell any more where its launcher is.
    if int(environment.get('OMPI_COMM_WORLD_SIZE', 1)) > 1 and 'OMPI_MCA_orte_hnp_uri' not in environment:
        raise ConfigError(
            [
                f'OMPI_COMM_WORLD_SIZE={environment["OMPI_COMM_WORLD_SIZE"]}: this Open MPI does not say where process '
                '0 is; mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT, a free port of its host'
            ]
        )
    in_srun = 'SLURM_STEP_NODELIST' in environment and int(environment.get('SLURM_NTASKS', 1)) > 1
    if in_srun or 'OMPI_MCA_orte_hnp_uri' in environment:
        return {}
    if not has_tpu:
        return None
    hosts = environment.get('TPU_PROCESS_ADDRESSES') or environment.get('TPU_WORKER_HOSTNAMES')
    if hosts is None:
        # A TPU VM, whose metadata server knows; where it must not be asked, as on Colab, there is one host.
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
    raise ConfigError([f'JAX_COORDINATOR_ADDRESS is set, and none of {", ".join(names)}; set {names[0]}'])


def has_tpu() -> bool:
    """Whether this machine has a TPU, told without JAX, which would open it."""
    return any(any(epath.Path('/dev').glob(pattern)) for pattern in ('accel*', 'vfio/*'))


def is_first() -> bool:
    """Whether this process is the one that writes and tells."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """A line for the user, once a job."""
    if is_first():
        print(text, flush=True)


def wait_for_all(reason: str) -> None:
    """Returns when every process has come here.

    Args:
        reason: what for; the same in all.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(reason)


def leave_together() -> None:
    """Ends the job in order, once every process has come here; the first may take long over what it still writes.

    Left to the interpreter's end, the first to reach it would give the others but SHUTDOWN_TIMEOUT.
    """
    if jax.distributed.is_initialized():
        wait_for_all('the end')
        jax.distributed.shutdown()


def together(action: Callable[[], Result], mistakes: tuple[type[Exception], ...]) -> Result:
    """Does something in every process; if a mistake of the user stops one, it stops all.

    Args:
        action: called without arguments.
        mistakes: exceptions that stop all.

    Returns:
        What the action returned in this process.

    Raises:
        mistakes: raised by the action in this process.
        FailedElsewhere: raised by the action in another one.
    """
    result, mistake = None, None
    try:
        result = action()
    except mistakes as error:
        mistake = error
    failed = np.flatnonzero(_of_all(mistake is not None))
    if mistake is not None:
        raise mistake
    if failed.size:
        raise FailedElsewhere(f'process {failed[0]} stopped, for the reason that it gives')
    return result


def all_agree(statement: bool) -> bool:
    """Whether it is true in every process."""
    return bool(_of_all(statement).all())


def _of_all(statement: bool) -> np.ndarray:
    """The statement in every process, bool [processes]."""
    if jax.process_count() == 1:
        return np.array([statement])
    return np.asarray(multihost_utils.process_allgather(np.array(statement))).reshape(-1)


class Preemption:
    """Notices SIGTERM, which machines and schedulers send before they take themselves away.

    Where the job has several processes it is noticed by JAX's preemption service, which also makes them agree when
    to stop: any one of them may have been told.

    Example:
        >>> with Preemption() as preemption:
        ...     if preemption.is_due(): save()
    """

    def __init__(self):
        self._told, self._asked = False, 0

    def __enter__(self) -> 'Preemption':
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._tell)
        return self

    def __exit__(self, *error) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before)

    def _tell(self, *_) -> None:
        self._told = True

    def is_due(self) -> bool:
        """Whether to save now and end; all processes must ask equally often, after the same steps."""
        if jax.process_count() == 1:
            return self._told
        # The processes agree on a question to come, and recognise it by its number.
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked)
