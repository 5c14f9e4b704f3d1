"""Source: a directory of image files, local or gs://. No TensorFlow."""

import os

import numpy as np
from etils import epath

from simclr_jax.config.paths import printable, user_path
from simclr_jax.config.storage import check_reachable, first_line, storage_errors
from simclr_jax.data.listing import EXTENSIONS, list_images
from simclr_jax.data.spec import DataError, Examples, Files

# Names of sub-directories that are splits and not classes, where one of each stands side by side.
_TRAIN_NAMES = ('train', 'training')
_TEST_NAMES = ('test', 'testing', 'val', 'valid', 'validation', 'eval')
# The split that is the directory itself, whatever its sub-directories are called.
ALL = '.'


def load_folder(path: str, split: str) -> Examples:
    """Opens the image files below a directory, in the order of their names.

    The sub-folders are the classes if there are at least two and every image lies in one. Otherwise there are no
    labels. Hidden files and directories are left out, and so is what is no image by its name.

    Args:
        path: Path of the directory, local or gs://.
        split: Name of the sub-directory that holds the split. '' means the directory itself, and '.' too, even where
            it holds train/ and test/.

    Raises:
        DataError: There is no such directory, it holds no image files, or its sub-directories are splits.
    """
    root = epath.Path(user_path(path))
    base = root if split in ('', ALL) else root / split
    _check_directory(path, split, root, base)
    try:
        listing = list_images(os.fspath(base))
    except (OSError, *storage_errors()) as error:
        why = getattr(error, 'strerror', None) or first_line(error)
        raise DataError(f'{printable(base)} cannot be listed: {why}; choose another') from error
    notes = (f'{printable(base)}: left out {listing.left_out}.',) if listing.left_out else ()
    if not listing.paths:
        raise DataError(
            '\n'.join([f'{printable(base)} holds no image files ({", ".join(EXTENSIONS)}), at any depth', *notes])
        )
    # os.path.relpath would not keep the // of gs://.
    relative = [file[len(os.fspath(base)) :].lstrip(os.sep) for file in listing.paths]
    if not split:
        _refuse_splits(root, relative)
    labels, class_names = _classes(relative)
    name = printable(base)
    return Examples(name, len(listing.paths), Files(listing.paths), labels, class_names, notes=notes)


def _check_directory(path: str, split: str, root: epath.Path, base: epath.Path) -> None:
    """Raises DataError unless the directory and its split are there, under names that TensorFlow can use."""
    shown = printable(path)
    check_reachable(root)
    if not root.is_dir():
        raise DataError(f'data.path={shown}: there is no such directory')
    if not base.is_dir():
        folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        raise DataError(
            f"data.path={shown} has no sub-directory '{split}' for that split; there are: "
            f"{printable(', '.join(folders[:20])) or 'none'}. A folder without splits: data.split='' data.eval_split=''"
        )
    try:
        os.fspath(base).encode()
    except UnicodeEncodeError as error:
        raise DataError(f'data.path={shown}: the name is not UTF-8; rename the directory') from error


def _classes(relative: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels int32 [N], -1: none, and the names of the classes, from paths below the split's directory."""
    folders = [file.split(os.sep)[0] if os.sep in file else '' for file in relative]
    class_names = tuple(sorted(set(folders)))
    if '' in class_names or len(class_names) < 2:
        return np.full(len(relative), -1, np.int32), ()
    number = {name: label for label, name in enumerate(class_names)}
    return np.array([number[folder] for folder in folders], np.int32), class_names


def _refuse_splits(root: epath.Path, relative: list[str]) -> None:
    """Raises DataError if a split for training and one for testing stand side by side, at any depth."""
    inside: dict[str, set[str]] = {}
    for directory in {os.path.dirname(file) for file in relative}:
        while directory:
            above, name = os.path.split(directory)
            inside.setdefault(above, set()).add(name)
            directory = above
    for above, names in sorted(inside.items()):
        train, test = (_first(names, known) for known in (_TRAIN_NAMES, _TEST_NAMES))
        if train and test:
            place = root / above if above else root
            path = f'data.path={printable(place)} ' if above else ''
            raise DataError(
                f"data.split='': {printable(place)} holds {train}/ and {test}/, so that the images of {test}/ would be "
                f'trained on; set {path}data.split={train} data.eval_split={test} (simclr embed: --split={test}), or '
                f'data.split={ALL} to take all images'
            )


def _first(names: set[str], known: tuple[str, ...]) -> str:
    """The first of the known names that is there, whatever its capitals. '' if there is none."""
    by_name = {name.casefold(): name for name in sorted(names)}
    return next((by_name[name] for name in known if name in by_name), '')
