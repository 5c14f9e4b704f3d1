"""New directories that appear as a whole or not at all."""

import contextlib
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
    is_remote = '://' in str(place)
    if not is_remote:
        place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'{place.name}.', dir=None if is_remote else place.parent) as name:
        made = epath.Path(name) / 'made'
        made.mkdir()
        yield made
        if is_remote:
            _copy(made, place)
        else:
            if place.exists():
                place.rmdir()
            shutil.move(made, place)


def _copy(source: epath.Path, place: epath.Path) -> None:
    for path in sorted(source.glob('**/*')):
        if path.is_file():
            target = place / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
