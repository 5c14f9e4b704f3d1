"""Features of any images by a pretrained encoder, as a file for other programs."""

import os
import pathlib
from collections.abc import Callable

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax.config import ConfigError
from simclr_jax.data.sources import load_examples
from simclr_jax.data.spec import DataError, Examples
from simclr_jax.data.suite import TEST_NAMES, resolve_dataset
from simclr_jax.evaluation.extractor import FeatureExtractor
from simclr_jax.evaluation.features import Features, features_of, ids_of, write_features
from simclr_jax.training.workdir import write_whole

ENDINGS = ('.npz', '.parquet')


def open_split(home: ConfigDict, dataset: str, split: str) -> Examples:
    """The images to embed.

    Args:
        home: the group `data` of the pretraining's configuration.
        dataset: '': the data of the pretraining; 'folder:PATH' or the path of a directory, whose images need
            neither labels nor splits; 'PATH.npz', with or without '{split}' in it; or a name of the transfer
            experiments or of TensorFlow Datasets, see `suite.resolve_dataset`.
        split: '': the one for testing or, of a folder or an .npz without splits, everything.

    Raises:
        DataError: there is no such data set or split, or no image in it.
    """
    if not dataset:
        return load_examples(home, split or home.eval_split or home.split)
    fields, split = _find(dataset, split, home.path if home.source == 'tfds' else '')
    data = home.copy_and_resolve_references()
    with data.unlocked():
        data.update(fields)
    return load_examples(data, split)


def _find(dataset: str, split: str, data_dir: str) -> tuple[dict[str, str], str]:
    """The configuration's fields of a data set, and the split."""
    if dataset.endswith('.npz'):
        if '{split}' in dataset:
            split = split or _split_to_test(dataset, pathlib.Path.is_file) or 'test'
        return {'source': 'arrays', 'name': '', 'path': dataset}, split
    if _is_folder(dataset):
        path = str(pathlib.Path(dataset.removeprefix('folder:')).expanduser())
        split = split or _split_to_test(os.path.join(path, '{split}'), pathlib.Path.is_dir)
        return {'source': 'folder', 'name': '', 'path': path}, split
    try:
        spec = resolve_dataset(dataset, data_dir)
    except DataError:
        if not split:
            raise
        # It may have this split, and none to test on.
        return {'source': 'tfds', 'name': dataset, 'path': data_dir}, split
    return {'source': spec.source, 'name': spec.name, 'path': spec.path}, split or spec.eval_split


def _is_folder(dataset: str) -> bool:
    is_path = dataset.startswith(('folder:', os.sep, '.', '~'))
    return is_path or (os.sep in dataset and pathlib.Path(dataset).is_dir())


def _split_to_test(pattern: str, is_there: Callable[[pathlib.Path], bool]) -> str:
    """The one among files or directories; '' where there is none."""
    return next((name for name in TEST_NAMES if is_there(pathlib.Path(pattern.replace('{split}', name)))), '')


def embed(
    encoder: FeatureExtractor,
    examples: Examples,
    layer: str = 'h',
    progress: Callable[[int], None] = lambda count: None,
) -> Features:
    """Features of every readable image, made anew: unlike a data set's, a user's own images may have changed.

    Args:
        encoder: makes them.
        examples: the images.
        layer: see `Encoder.features`.
        progress: called with the number of images each time that some have been encoded.

    Raises:
        DataError: no image can be read.
    """
    devices = encoder.mesh.size
    found = features_of(
        encoder.function(layer),
        examples,
        image_size=encoder.image_size,
        # A few images do not fill a batch, and the rest of it would be computed in vain.
        batch_size=min(encoder.batch_size, -(-examples.size // devices) * devices),
        mesh=encoder.mesh,
        progress=progress,
    )
    if not len(found.values):
        raise DataError(f'none of {examples.size} files of {examples.name} is a readable image; give others')
    return found


def unreadable(found: Features, examples: Examples) -> list[str]:
    """The files that turned out to be no images."""
    return np.delete(np.array(examples.ids()), found.index).tolist()


def classes_shown(labels: np.ndarray, class_names: tuple[str, ...]) -> list[list[str]]:
    """Names of the classes of each image: none without a label, one, or several.

    Args:
        labels: int [N], or [N, K] of several labels an image; see spec.Examples.
        class_names: of the labels 0..K-1.
    """
    if labels.ndim == 2:
        return [[class_names[label] for label in np.flatnonzero(row == 1)] for row in labels]
    return [[class_names[label]] if label >= 0 else [] for label in labels]


def write(path: epath.Path, found: Features, examples: Examples) -> None:
    """Writes features with their images' ids and labels, whole or not at all.

    An .npz has the arrays features float32 [N, F], labels int32 [N] or [N, K], ids str [N], and index int32 [N] (which
    image of the split). A .parquet file has the columns id, label, class_name (null where there is none; lists
    where an image has several) and features, lists of F float32.

    Args:
        path: ends in one of ENDINGS.
        found: the features.
        examples: whose they are.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        (write_features if path.suffix == '.npz' else _write_parquet)(path, found, examples)
    except OSError as error:
        raise ConfigError([f'{path} cannot be written: {error.strerror or error}; choose another']) from error


def _write_parquet(path: epath.Path, found: Features, examples: Examples) -> None:
    import pyarrow
    from pyarrow import parquet

    names = classes_shown(found.labels, examples.class_names)
    if found.labels.ndim == 1:
        names = [next(iter(shown), None) for shown in names]
    values = pyarrow.array(found.values.reshape(-1))
    table = pyarrow.table(
        {
            'id': pyarrow.array(ids_of(examples, found.index)),
            'label': pyarrow.array(found.labels if found.labels.ndim == 1 else list(found.labels)),
            'class_name': pyarrow.array(
                names, pyarrow.string() if found.labels.ndim == 1 else pyarrow.list_(pyarrow.string())
            ),
            'features': pyarrow.FixedSizeListArray.from_arrays(values, found.values.shape[1]),
        }
    )
    write_whole(path, lambda file: parquet.write_table(table, file))
