"""A run in its work directory: take the directory, start or resume, then the loop. The same for every task."""

import contextlib
from collections.abc import Callable, Iterator

from simclr_jax import distributed
from simclr_jax.config import ConfigError
from simclr_jax.training import loop
from simclr_jax.training.checkpoints import CheckpointError, Checkpoints
from simclr_jax.training.checksum import checksum
from simclr_jax.training.lock import Lock
from simclr_jax.training.log import Log
from simclr_jax.training.loop import Training
from simclr_jax.training.state import TrainState
from simclr_jax.training.step import with_constant
from simclr_jax.training.task import Parts

Say = Callable[[str], None]
# Mistakes of the user that only one process may meet. They stop all of them.
MISTAKES = (ConfigError, CheckpointError)


def start_or_resume(
    directory: str,
    like: TrainState,
    first_state: Callable[[Say], TrainState],
    training: Training,
    *,
    introduce: Callable[[Say], None],
    claim: Callable[[], list[str]] = lambda: [],
    checkpoints_kept: int = 1,
    constant: Parts | None = None,
) -> TrainState:
    """Trains to the end of the schedule, from the newest checkpoint in the directory or from a first state.

    Args:
        directory: Work directory of the run, local or gs://. It receives metrics, events and checkpoints.
        like: Shapes and shardings of the state.
        first_state: Makes the state at step 0, if the directory has no checkpoint. It may write lines to the log.
        training: Step, batches, schedule and the other fixed parts of the run.
        introduce: Writes what the run is to the log, before anything else.
        claim: Writes the run's configuration into the directory, in the first process. It returns what has changed.
        checkpoints_kept: Newest checkpoints that stay.
        constant: Constant frozen parts of the state by name, such as a teacher. None: there are none.

    Returns:
        The last state, which is saved.

    Raises:
        ConfigError: Another process uses the directory, or it cannot be written.
        CheckpointError: Checkpoints cannot be read or written, or belong to a state of other shapes.
        NotFiniteError, Preempted: See `loop.train`.
    """
    constant = constant or {}
    sums = {name: checksum(part) for name, part in constant.items()}
    with _locked(directory) as lock:
        with contextlib.closing(Checkpoints(directory, reads_only=True, constant=sums)) as saved:
            saved.check_fits(like)
        changed = distributed.together(lambda: claim() if distributed.is_first() else [], MISTAKES)
        log = Log(directory, training.schedule.total_steps, tensorboard=True)
        with contextlib.closing(log):

            def before_saving() -> None:
                lock.check()
                # A run that resumes there must find the rows up to this step, also in a storage.
                log.flush()

            checkpoints = Checkpoints(
                directory, keep=checkpoints_kept, say=log.say, before_saving=before_saving, constant=sums
            )
            with contextlib.closing(checkpoints):
                introduce(log.say)
                for line in changed:
                    log.say(f'Configuration changed: {line}')
                state = checkpoints.restore(like)
                if state is None:
                    log.say('Making the first parameters.')
                    state = first_state(log.say)
                else:
                    log.say(f'Resuming at step {int(state.step)}.')
                log.resume(int(state.step))
                return loop.train(with_constant(state, constant), training, checkpoints, log)


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[Lock]:
    """Holds the lock `train` of a directory, in the first process for all.

    Raises:
        ConfigError: Another job holds it, or the directory cannot be written.
    """
    lock = Lock(directory, 'train', say=distributed.say)

    def take() -> None:
        if not distributed.is_first():
            return
        try:
            held.enter_context(lock)
        except OSError as error:
            why = error.strerror or error
            raise ConfigError([f'--workdir={directory} cannot be used: {why}; choose another']) from error

    with contextlib.ExitStack() as held:
        distributed.together(take, MISTAKES)
        yield lock
