"""Whether the arrays of a checkpoint are those of a state, by their descriptions alone."""

from typing import Any

import jax.numpy as jnp
import orbax.checkpoint as ocp

from simclr_jax.training.checkpoint_errors import CheckpointError

# Differing arrays that a message names.
NAMED = 5


def differences(saved: Any, wanted: Any) -> list[str]:
    """Compares two trees of arrays or of their descriptions.

    Args:
        saved: Tree of a checkpoint. Its leaves have a shape and a type.
        wanted: Tree of a state.

    Returns:
        A line for each array that only one tree has, or that has another shape or type: 'path: saved -> wanted'.
    """
    before, after = _described(saved), _described(wanted)
    return [
        f'{name}: {before.get(name, "none")} -> {after.get(name, "none")}'
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def _described(tree: Any) -> dict[str, str]:
    """Shape and type of each array by its path, as Orbax names it."""
    return {
        '/'.join(map(str, path)): f'{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}'
        for path, leaf in ocp.tree.to_flat_dict(tree).items()
        if leaf is not None
    }


def misfit(directory: str, step: int, lines: list[str]) -> CheckpointError:
    """The error about a checkpoint of another model or optimiser.

    Args:
        directory: Directory of the checkpoints.
        step: Step of the checkpoint.
        lines: Differing arrays, see `differences`.
    """
    more = [f'  and {len(lines) - NAMED} more'] if len(lines) > NAMED else []
    source = directory.removesuffix('/checkpoints')
    return CheckpointError(
        '\n'.join(
            [
                f'the checkpoint of step {step} in {directory} belongs to another model or optimiser: '
                f'{len(lines)} arrays differ (saved -> wanted):',
                *(f'  {line}' for line in lines[:NAMED]),
                *more,
                'Undo these changes of the configuration; or choose another --workdir, and take over the parts that '
                f'fit by --config.init_from={source}',
            ]
        )
    )
