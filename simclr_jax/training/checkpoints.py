"""Checkpoints in a work directory, through Orbax: asynchronous, atomic, the newest few kept, verified when read.

A checkpoint has three items: `model` (params, batch_stats), which can be read alone, `train` (step, opt_state), and
`meta` (a checksum of each). Orbax notices missing and truncated files, but not flipped bits. The checksums find those.
"""

import contextlib
import gc
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh

from simclr_jax import distributed
from simclr_jax.sharding import replicated
from simclr_jax.training.state import TrainState


class CheckpointError(ValueError):
    """No checkpoint can be used, or one cannot be written. The message names the directory and the cure."""


def checksum(tree: Any) -> int:
    """A number below 2^32 that changes with any single bit of any array."""
    sums = [_sum_of_words(leaf, jnp.uint32(2 * number + 1)) for number, leaf in enumerate(jax.tree.leaves(tree))]
    total = 0
    for value in jax.device_get(sums):
        total = (31 * total + int(value)) % 2**32
    return total


# One small program is compiled for each shape. A single program for all arrays would take many times longer.
@jax.jit
def _sum_of_words(leaf: jax.Array, first_weight: jax.Array) -> jax.Array:
    """uint32 []: the sum of the words, weighted by odd numbers."""
    words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f'uint{8 * leaf.dtype.itemsize}'))
    words = words.reshape(-1).astype(jnp.uint32)
    return jnp.sum(words * (2 * jax.lax.iota(jnp.uint32, words.size) + first_weight), dtype=jnp.uint32)


class Checkpoints:
    """The checkpoints of one work directory.

    Args:
        workdir: Work directory, local or gs://.
        keep: Newest checkpoints that stay, at least 1.
        say: Function that receives lines for the user.
    """

    def __init__(self, workdir: str, *, keep: int = 3, say: Callable[[str], None] = print):
        self._directory = epath.Path(workdir).absolute() / 'checkpoints'
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self._say = say
        self._has_failed = False
        self._open()

    def _open(self) -> None:
        # With named handlers the manager knows shapes before it has saved or restored anything.
        handlers = {'model': ocp.StandardCheckpointHandler(), 'train': ocp.StandardCheckpointHandler()}
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=self._options,
            item_handlers={**handlers, 'meta': ocp.JsonCheckpointHandler()},
        )

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint. None if there is no checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Saves a state in the background. The checkpoint appears under its name when it is complete.

        A step that is saved already is not saved again.

        Raises:
            CheckpointError: This checkpoint, or the one before it, could not be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        model, train = _parts(state)
        meta = {'model': checksum(model), 'train': checksum(train)}
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(model),
                    train=ocp.args.StandardSave(train),
                    meta=ocp.args.JsonSave(meta),
                ),
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        # Orbax raises whatever its threads met: errors of the file system, of tensorstore, or of Orbax.
        except (OSError, ValueError, RuntimeError) as error:
            self._has_failed = True
            steps = ', '.join(map(str, sorted(self._manager.all_steps()))) or 'none'
            raise CheckpointError(
                f'a checkpoint could not be written to {self._directory}: {_first_line(error)}. Free some space, or '
                f'correct this error; the same command resumes from the newest checkpoint (saved steps: {steps})'
            ) from error

    def restore(self, like: TrainState) -> TrainState | None:
        """Restores the newest undamaged state. Damaged newer checkpoints are named and moved to `damaged/`.

        Args:
            like: State, or its shapes, with the shardings of the result.

        Returns:
            The state, or None if there is no checkpoint at all.

        Raises:
            CheckpointError: There are checkpoints, and all of them are damaged.
        """
        model, train = _parts(like)
        restored = self._newest_undamaged(lambda _: {'model': model, 'train': train}, set_aside=True)
        if restored is None:
            return None
        return TrainState(**restored['model'], **restored['train'])

    def restore_model(self, mesh: Mesh) -> tuple[dict[str, Any], int]:
        """Restores only the newest undamaged model. Damaged newer checkpoints are named and stay in their place.

        Args:
            mesh: Devices. Each receives the whole model.

        Returns:
            {'params': ..., 'batch_stats': ...} as it was saved, and the step.

        Raises:
            CheckpointError: There is no checkpoint, or all are damaged.
        """
        restored = self._newest_undamaged(lambda step: {'model': self._saved_shapes(step, mesh)}, set_aside=False)
        if restored is None:
            raise CheckpointError(f'there is no checkpoint in {self._directory}; train first (simclr train)')
        return restored['model'], restored['step']

    def _saved_shapes(self, step: int, mesh: Mesh) -> Any:
        tree = self._manager.item_metadata(step)['model'].tree
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), tree)

    def wait(self) -> None:
        """Waits until everything saved so far is on disk.

        Raises:
            CheckpointError: A checkpoint could not be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits like `wait`, and releases the directory.

        Raises:
            CheckpointError: A checkpoint could not be written, and no earlier call has raised this error.
        """
        # After a failure that was already raised, the manager would raise it once more.
        with contextlib.suppress(Exception) if self._has_failed else self._writing():
            self._manager.close()

    def _newest_undamaged(self, like: Callable[[int], dict[str, Any]], set_aside: bool) -> dict[str, Any] | None:
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            with _quiet():
                try:
                    return self._restore_step(step, like(step)) | {'step': step}
                except Exception as error:  # Orbax raises bare Exception, and others, on damaged files.
                    reason = _first_line(error)
                gc.collect()
            self._say(f'Checkpoint of step {step} in {self._directory} is damaged ({reason}).')
            if set_aside:
                self._set_aside(step)
        if steps:
            raise CheckpointError(
                f'all checkpoints in {self._directory} are damaged (steps {sorted(steps)}); choose another --workdir '
                'to start again from step 0'
            )
        return None

    def _restore_step(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        items = {
            name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, part))
            for name, part in like.items()
        }
        restored = self._manager.restore(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonRestore()))
        for name in like:
            found, expected = checksum(restored[name]), restored['meta'][name]
            if found != expected:
                raise CheckpointError(f'checksum of {name} is {found:#x}, was {expected:#x} when saved')
        return {name: restored[name] for name in like}

    def _set_aside(self, step: int) -> None:
        self._manager.close()
        if distributed.is_first():
            target = self._directory.parent / 'damaged'
            target.mkdir(parents=True, exist_ok=True)
            taken = {path.name for path in target.iterdir()}
            name = next(name for name in (f'{step}', *(f'{step}.{n}' for n in range(1, 1000))) if name not in taken)
            (self._directory / str(step)).rename(target / name)
            self._say(f'It was moved to {target / name}.')
        distributed.wait_for_all('a damaged checkpoint was set aside')
        self._open()


def _parts(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    model = {'params': state.params, 'batch_stats': state.batch_stats}
    return model, {'step': state.step, 'opt_state': state.opt_state}


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # A message of tensorstore begins with the operation and ends with the cause.
    return line if len(line) <= 300 else f'{line[:100]} ... {line[-190:]}'


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the futures that a failed restore leaves behind. Their errors would fill pages when collected."""
    logger, level, hook = logging.getLogger('asyncio'), logging.getLogger('asyncio').level, sys.unraisablehook
    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda unraisable: None
    try:
        yield
    finally:
        logger.setLevel(level)
        sys.unraisablehook = hook
