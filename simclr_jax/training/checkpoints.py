"""Checkpoints in a work directory, through Orbax: asynchronous, atomic, the newest few kept, verified when read.

A checkpoint has three items: `model` (params, batch_stats), which can be read alone, `train` (step, opt_state, and the
frozen parts that the step updates), and `meta` (a checksum of each, and of the constant frozen parts). Orbax notices
missing and truncated files, but not flipped bits. The checksums find those.
"""

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from simclr_jax import distributed
from simclr_jax.config.paths import absolute
from simclr_jax.config.storage import storage_errors
from simclr_jax.sharding import replicated
from simclr_jax.training.checkpoint_errors import CheckpointError, check_path, is_damage, quiet, reason
from simclr_jax.training.checkpoint_fit import differences, misfit
from simclr_jax.training.checksum import checksum
from simclr_jax.training.state import Frozen, TrainState

__all__ = ['CheckpointError', 'Checkpoints']

# Entry of the item `train` that holds the frozen parts which the step updates.
UPDATED = 'frozen'
# Attempts to read a checkpoint beside a run that saves newer ones and deletes the older ones.
ATTEMPTS = 10


class Checkpoints:
    """The checkpoints of one work directory.

    Args:
        workdir: Work directory, local or gs://.
        keep: Newest checkpoints that stay, at least 1.
        say: Function that receives lines for the user.
        before_saving: Function that is called before each save, and may refuse it.
        reads_only: Whether to leave the directory as it is. A run may save into it meanwhile. Otherwise what an
            interrupted save has left behind is removed.
        constant: Checksums of the constant frozen parts of the states by name. No checkpoint holds these parts.

    Raises:
        CheckpointError: No checkpoint can be read below this path.
    """

    def __init__(
        self,
        workdir: str,
        *,
        keep: int = 3,
        say: Callable[[str], None] = print,
        before_saving: Callable[[], None] = lambda: None,
        reads_only: bool = False,
        constant: Mapping[str, int] | None = None,
    ):
        self._directory = absolute(workdir) / 'checkpoints'
        check_path(str(self._directory))
        if reads_only:
            self._options = ocp.CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
        else:
            self._options = ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
            )
        self._reads_only, self._say, self._before_saving = reads_only, say, before_saving
        self._constant = dict(constant or {})
        self._has_failed, self._has_saved = False, False
        self._open()

    def _open(self) -> None:
        # With named handlers the manager knows shapes before it has saved or restored anything.
        handlers = {'model': ocp.StandardCheckpointHandler(), 'train': ocp.StandardCheckpointHandler()}
        with quiet():
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

        A step that is saved already is not saved again. The first save is waited for and its description is read
        back, so that a place that keeps nothing is found at once.

        Raises:
            CheckpointError: This checkpoint, or the one before it, could not be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._before_saving()
        model, train = _parts(state)
        meta = {'model': checksum(model), 'train': checksum(train), **self._constant}
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(model),
                    train=ocp.args.StandardSave(train),
                    meta=ocp.args.JsonSave(meta),
                ),
            )
            if not self._has_saved:
                self._manager.wait_until_finished()
                self._read_back(step, state)
        self._has_saved = True

    def _read_back(self, step: int, state: TrainState) -> None:
        """Raises CheckpointError unless the description of a checkpoint can be read and is that of the state."""
        with quiet():
            try:
                differing = self._differences_of(step, state)
            except Exception as error:
                raise CheckpointError(f'it cannot be read back ({reason(error)})') from error
        if differing:
            raise CheckpointError(f'it cannot be read back ({len(differing)} arrays are missing or differ)')

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        # Orbax raises whatever its threads met: errors of the file system, of tensorstore, or of Orbax.
        except (OSError, ValueError, RuntimeError, *storage_errors()) as error:
            self._has_failed = True
            steps = ', '.join(map(str, sorted(self._manager.all_steps()))) or 'none'
            raise CheckpointError(
                f'a checkpoint could not be written to {self._directory}: {reason(error)}. Free some space, or '
                f'correct this error; the same command resumes from the newest checkpoint (saved steps: {steps})'
            ) from error

    def check_fits(self, like: TrainState) -> None:
        """Asserts that the newest checkpoint has the arrays of a state. Nothing is moved or written.

        Args:
            like: State, or its shapes.

        Raises:
            CheckpointError: Arrays are missing, are too many, or have another shape or type. The message names them.
                Or a constant part is another one than before.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            with quiet():
                try:
                    differing = self._differences_of(step, like)
                    meta = self._meta_of(step) if self._constant else {}
                except Exception:  # Damage, which `restore` names.
                    differing, meta = None, {}
                if differing is None:
                    gc.collect()
                    continue
            if differing:
                raise misfit(str(self._directory), step, differing)
            self._check_constant(step, meta)
            return

    def _differences_of(self, step: int, like: TrainState) -> list[str]:
        """A line for each array in which a checkpoint and a state differ.

        Raises:
            Exception: The description of the checkpoint cannot be read.
        """
        lines = []
        for item, part in zip(('model', 'train'), _parts(like), strict=True):
            lines += differences(self._description_of(step, item), part)
        return lines

    def _description_of(self, step: int, item: str) -> Any:
        """Shapes and types of an item of a checkpoint. Raises Exception if they cannot be read."""
        # Without this file Orbax makes up a description from the names of the arrays.
        (self._directory / str(step) / item / '_METADATA').read_bytes()
        return self._manager.item_metadata(step)[item].tree

    def _meta_of(self, step: int) -> dict[str, Any]:
        """Checksums of a checkpoint. Raises Exception if they cannot be read."""
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))['meta']

    def restore(self, like: TrainState) -> TrainState | None:
        """Restores the newest undamaged state. Damaged newer checkpoints are named and moved to `damaged/`.

        Args:
            like: State, or its shapes, with the shardings of the result.

        Returns:
            The state without constant frozen parts, or None if there has never been a checkpoint.

        Raises:
            CheckpointError: There are checkpoints, or were, and all of them are damaged; or they cannot be reached; or
                a constant part is another one than before.
        """
        model, train = _parts(like)
        restored = self._newest_undamaged(lambda _: {'model': model, 'train': train}, set_aside=True)
        if restored is not None:
            self._check_constant(restored['step'], restored['meta'])
            updated = restored['train'].pop(UPDATED, {})
            return TrainState(**restored['model'], **restored['train'], frozen=Frozen(updated=updated))
        aside = self._directory.parent / 'damaged'
        names = [path.name for path in aside.iterdir()] if aside.exists() else []
        if names:
            raise self._all_are_damaged(sorted(names, key=lambda name: (len(name), name)))
        return None

    def _check_constant(self, step: int, meta: dict[str, Any]) -> None:
        for name, found in self._constant.items():
            saved = meta.get(name)
            if saved is None:
                raise CheckpointError(
                    f'the checkpoint of step {step} in {self._directory} was trained without a {name}; choose another '
                    '--workdir'
                )
            if found != saved:
                raise CheckpointError(
                    f'the {name} has changed since step {step} was saved in {self._directory}: its checksum is '
                    f'{found:#x}, it was {saved:#x}. Put the old {name} back, or choose another --workdir'
                )

    def model_shapes(self) -> dict[str, Any]:
        """Shapes and types of the model in the newest checkpoint whose description can be read.

        Raises:
            CheckpointError: There is no checkpoint, or no description can be read.
        """
        failures = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            with quiet():
                try:
                    return self._description_of(step, 'model')
                except Exception as error:  # Damage, which `restore_model` names.
                    failures.append(f'step {step}: {reason(error)}')
        if not failures:
            raise self._no_checkpoint()
        raise CheckpointError(
            f'no checkpoint in {self._directory} can be read ({"; ".join(failures)}); put an undamaged one there'
        )

    def _no_checkpoint(self) -> CheckpointError:
        return CheckpointError(f'there is no checkpoint in {self._directory}; train first (simclr train)')

    def restore_model(self, mesh: Mesh) -> tuple[dict[str, Any], int]:
        """Restores only the newest undamaged model. Damaged newer checkpoints are named and stay in their place.

        Args:
            mesh: Devices. Each receives the whole model.

        Returns:
            {'params': ..., 'batch_stats': ...} as it was saved, and the step.

        Raises:
            CheckpointError: There is no checkpoint, all are damaged, or they cannot be reached.
        """
        restored = self._newest_undamaged(lambda step: {'model': self._saved_shapes(step, mesh)}, set_aside=False)
        if restored is None:
            raise self._no_checkpoint()
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
        damaged: list[int] = []
        attempts = 0
        while steps := sorted({*self._manager.all_steps()} - {*damaged}):
            step = steps[-1]
            with quiet():
                try:
                    return self._restore_step(step, like(step)) | {'step': step}
                except jax.errors.JaxRuntimeError:  # The devices have no room, or another process is lost.
                    raise
                except Exception as error:  # Orbax raises bare Exception, and others, on damaged files.
                    why, can_be_good = reason(error), not is_damage(error)
                gc.collect()
            attempts += 1
            if self._reads_only and attempts < ATTEMPTS and self._run_has_gone_on(step):
                continue
            if can_be_good:
                raise CheckpointError(
                    f'the checkpoint of step {step} in {self._directory} cannot be read: {why}. Correct this; '
                    'the same command then goes on'
                )
            self._say(f'Checkpoint of step {step} in {self._directory} is damaged ({why}).')
            damaged.append(step)
            if set_aside:
                self._set_aside(step)
        if damaged:
            raise self._all_are_damaged(map(str, sorted(damaged)))
        return None

    def _run_has_gone_on(self, step: int) -> bool:
        """Whether a run has saved a newer checkpoint, or deleted this one, since the steps were listed."""
        with quiet():
            self._manager.reload()
        steps = self._manager.all_steps()
        return step not in steps or max(steps) > step

    def _all_are_damaged(self, steps: Iterable[str]) -> CheckpointError:
        return CheckpointError(
            f'all checkpoints in {self._directory} are damaged (steps {", ".join(steps)}); choose another --workdir to '
            'start again from step 0'
        )

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
        return {name: restored[name] for name in like} | {'meta': restored['meta']}

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
    train = {'step': state.step, 'opt_state': state.opt_state}
    # Checkpoints of tasks without such parts look as they always did.
    return model, train | ({UPDATED: state.frozen.updated} if state.frozen.updated else {})
