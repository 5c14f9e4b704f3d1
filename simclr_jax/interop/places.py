"""New directories that appear as a whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

from simclr_jax.config import ConfigError
from simclr_jax.config.paths import directory_path
from simclr_jax.config.storage import check_reachable


def check_new(out: str) -> epath.Path:
    """The path of a directory to make.

    Args:
        out: Value of --out, local or gs://.

    Raises:
        ConfigError: It exists, and is no empty directory.
    """
    place = epath.Path(directory_path(out))
    check_reachable(place)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError([f'--out={out}: it exists; choose another directory'])
    return place


@contextlib.contextmanager
def new_directory(place: epath.Path) -> Iterator[epath.Path]:
    """Gives a local directory to write into, and puts it in its place if the block ends without an error.

    Args:
        place: Directory to make, see `check_new`. One on gs:// is copied file by file.
    """
    if '://' in str(place):
        with tempfile.TemporaryDirectory() as name:
            yield epath.Path(name)
            _copy(epath.Path(name), place)
        return
    place = epath.Path(os.path.realpath(place))
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        # It may be the end of a link or the root of a disk, so that it stays.
        with tempfile.TemporaryDirectory() as name:
            yield epath.Path(name)
            for path in sorted(epath.Path(name).iterdir()):
                shutil.move(path, place / path.name)
        return
    with tempfile.TemporaryDirectory(prefix=f'{place.name}.', dir=place.parent) as name:
        made = epath.Path(name) / 'made'
        made.mkdir()
        yield made
        made.rename(place)


def _copy(source: epath.Path, place: epath.Path) -> None:
    for path in sorted(source.glob('**/*')):
        if path.is_file():
            target = place / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
