"""The work directory's files: config.json and result.json, written whole or not at all."""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from simclr_jax.config import ConfigError
from simclr_jax.config import pretraining as configuration
from simclr_jax.config.paths import absolute
from simclr_jax.config.storage import check_reachable, first_line, storage_errors
from simclr_jax.config.whole_file import write_whole
from simclr_jax.training.checkpoint_errors import check_path

# What a run leaves in its directory.
TRACES = ('checkpoints', 'damaged', 'metrics.jsonl')


def set_aside(path: epath.Path, suffix: str) -> epath.Path:
    """Renames a file or directory that is in the way to `NAME.SUFFIX`, or `NAME.SUFFIX.1` and so on.

    Args:
        path: File or directory, local or gs://.
        suffix: What it is now, for example 'damaged'.

    Returns:
        Its new path.
    """
    names = itertools.chain([f'{path.name}.{suffix}'], (f'{path.name}.{suffix}.{n}' for n in itertools.count(1)))
    target = next(target for name in names if not (target := path.with_name(name)).exists())
    return path.rename(target)


def clear_place(path: epath.Path, say: Callable[[str], None], *, of_directory: bool = False) -> None:
    """Sets aside a directory in the place of a file, or a file in the place of a directory.

    Args:
        path: Place to clear, local or gs://.
        say: Function that receives a line for the user if there was something.
        of_directory: Whether the place is that of a directory.
    """
    if path.exists() and path.is_dir() != of_directory:
        what = 'no directory' if of_directory else 'a directory'
        say(f'{path} is {what}; it is {set_aside(path, "damaged").name} now.')


def check_claim(workdir: str, config: ConfigDict, *, allow_change: bool) -> list[str]:
    """Checks whether a directory can be the work directory of a configuration. Nothing is written.

    Args:
        workdir: Directory, local or gs://.
        config: Checked configuration of the run.
        allow_change: Whether to take over the directory of another configuration.

    Returns:
        A line for each field that differs from the configuration in the directory. Without `allow_change` there is
        none.

    Raises:
        ConfigError: The directory belongs to another or an unknown configuration, or cannot be read.
        CheckpointError: Checkpoints below this path could not be read.
    """
    directory = absolute(workdir)
    check_path(str(directory))
    check_reachable(directory, holds_runs=True)
    with _usable(workdir):
        is_claimed = (directory / 'config.json').exists()
        checkpoints = directory / 'checkpoints'
        if checkpoints.exists() and not checkpoints.is_dir():
            raise ConfigError([f'{checkpoints} is a file; move it away, or choose another --workdir'])
        remains = [name for name in TRACES if _holds_something(directory / name)]
        if remains and not is_claimed:
            raise ConfigError(
                [
                    f'--workdir={workdir} holds {", ".join(remains)} but no config.json, so that it is not known which '
                    'configuration they belong to; put its config.json back, or choose another --workdir'
                ]
            )
        changed = configuration.differences(read_config(workdir), config) if is_claimed else []
    if changed and not allow_change:
        raise ConfigError(
            [
                f'--workdir={workdir} holds a run of another configuration (saved -> wanted):',
                *(f'  {line}' for line in changed),
                'Choose another --workdir, undo these changes, or resume with them by --allow-config-change',
            ]
        )
    return changed


def claim(workdir: str, config: ConfigDict, *, allow_change: bool) -> list[str]:
    """Makes a directory the work directory of a configuration. It may already be that.

    A directory that once held a run never starts a new one in its place. With config.json and checkpoints the run
    resumes. With config.json and no checkpoint it starts at step 0 again: it was interrupted before its first one,
    and metrics.jsonl is set aside. With damaged checkpoints alone, `Checkpoints.restore` refuses. Without config.json,
    any of TRACES is refused.

    Args:
        workdir: Directory, local or gs://. It is made where it does not exist.
        config: Checked configuration of the run.
        allow_change: Whether to take over the directory of another configuration.

    Returns:
        The changed fields, see `check_claim`.

    Raises:
        ConfigError, CheckpointError: See `check_claim`. Or the directory cannot be written.
    """
    changed = check_claim(workdir, config, allow_change=allow_change)
    path = epath.Path(workdir) / 'config.json'
    with _usable(workdir):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, configuration.to_json(config))
    return changed


@contextlib.contextmanager
def _usable(workdir: str) -> Iterator[None]:
    """Turns an error of the file system into one that names the option."""
    try:
        yield
    except (OSError, *storage_errors()) as error:
        why = getattr(error, 'strerror', None) or first_line(error)
        raise ConfigError([f'--workdir={workdir} cannot be used: {why}; choose another']) from error


def _holds_something(path: epath.Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def read_config(workdir: str) -> ConfigDict:
    """Reads the configuration of the run in a work directory.

    Args:
        workdir: Work directory, local or gs://.

    Raises:
        ConfigError: The directory has no config.json, or it cannot be read.
    """
    check_reachable(workdir, holds_runs=True)
    path = epath.Path(workdir) / 'config.json'
    if not path.exists():
        raise ConfigError(
            [f'{workdir} is not a work directory: it holds no config.json; give the directory of a `simclr train`']
        )
    try:
        return configuration.from_json(path.read_text())
    except UnicodeDecodeError as error:
        raise ConfigError([f'{path} is damaged: {error}; restore it, or choose another --workdir']) from error
    except ConfigError as error:
        raise ConfigError(
            [
                f'{path} was written by another version of this program, or is damaged; choose another --workdir:',
                *error.problems,
            ]
        ) from error


def write_result(workdir: str, result: dict[str, Any]) -> None:
    """Writes result.json, the results of the last evaluation.

    Args:
        workdir: Work directory, local or gs://.
        result: Content of the file, see `evaluation.result_file.write_results`.
    """
    write_whole(epath.Path(workdir) / 'result.json', json.dumps(result, indent=2) + '\n')
