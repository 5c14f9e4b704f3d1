"""Source: a directory of image files. No TensorFlow."""

import os
import pathlib

import numpy as np

from simclr_jax.data.spec import DataError, Examples, Files

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif')


def load_folder(path: str, split: str) -> Examples:
    """Opens the image files below a directory, in the order of their names.

    The sub-folders are the classes if there are at least two and every image lies in one. Otherwise there are no
    labels.

    Args:
        path: Path of the directory.
        split: Name of the sub-directory that holds the split. '' means the directory itself.

    Raises:
        DataError: There is no such directory, or it holds no image files.
    """
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f'data.path={path}: there is no such directory')
    base = root / split
    if not base.is_dir():
        folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        raise DataError(
            f"data.path={path} has no sub-directory '{split}' for that split; there are: "
            f"{', '.join(folders[:20]) or 'none'}. A folder without splits: data.split='' data.eval_split=''"
        )
    paths = _image_files(base)
    if not paths:
        raise DataError(f'{base} holds no image files ({", ".join(EXTENSIONS)}), at any depth')
    relative = [os.path.relpath(file, base) for file in paths]
    folders = [os.path.dirname(file).split(os.sep)[0] for file in relative]
    class_names = tuple(sorted(set(folders)))
    if '' in class_names or len(class_names) < 2:
        return Examples(str(base), len(paths), Files(paths), np.full(len(paths), -1, np.int32), ())
    number = {name: label for label, name in enumerate(class_names)}
    labels = np.array([number[folder] for folder in folders], np.int32)
    return Examples(str(base), len(paths), Files(paths), labels, class_names)


def _image_files(base: pathlib.Path) -> list[str]:
    found = []
    for directory, folders, names in os.walk(base, followlinks=True):
        folders.sort()
        found += [os.path.join(directory, name) for name in names if name.lower().endswith(EXTENSIONS)]
    return sorted(found)
