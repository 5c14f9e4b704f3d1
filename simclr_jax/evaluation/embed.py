"""Features of any images from a pretrained encoder, as a file for other programs."""

from collections.abc import Callable

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from simclr_jax.config import ConfigError
from simclr_jax.config.storage import first_line, storage_errors
from simclr_jax.config.whole_file import write_whole
from simclr_jax.data.sources import load_examples
from simclr_jax.data.spec import DataError, Examples
from simclr_jax.data.suite import resolve_split
from simclr_jax.evaluation.extractor import FeatureExtractor
from simclr_jax.evaluation.features import Features, features_of, ids_of, write_features

ENDINGS = ('.npz', '.parquet')


def open_split(home: ConfigDict, dataset: str, split: str) -> Examples:
    """Opens the images to embed.

    Args:
        home: Group `data` of the pretraining's configuration.
        dataset: One of these:

            * '' for the data of the pretraining.
            * 'folder:PATH' or the path of a directory, local or gs://. Its images need neither labels nor splits.
            * A directory that `simclr pack` wrote, or 'PATH.npz', with or without '{split}' in it.
            * A name of the transfer experiments or of TensorFlow Datasets, see `suite.resolve_dataset`.
        split: Name of the split. '' means the test split, or all images of a folder or an .npz without splits.

    Raises:
        DataError: The data set or split does not exist, or has no image.
    """
    if not dataset:
        return load_examples(home, split or home.eval_split or home.split)
    fields, split = resolve_split(dataset, split, home.path if home.source == 'tfds' else '')
    data = home.copy_and_resolve_references()
    with data.unlocked():
        data.update(fields)
    return load_examples(data, split)


def embed(
    encoder: FeatureExtractor,
    examples: Examples,
    layer: str = 'h',
    progress: Callable[[int], None] = lambda count: None,
) -> Features:
    """Computes the features of every readable image.

    The features are always recomputed, because the user's own images may have changed.

    Args:
        encoder: Encoder, for example from `extractor.open_extractor`.
        examples: Images to encode.
        layer: Layer of the features, see `FeatureExtractor.features`.
        progress: Function that receives the number of images after each batch.

    Raises:
        DataError: No image can be read.
    """
    devices = encoder.mesh.size
    found = features_of(
        encoder.function(layer),
        examples,
        image_size=encoder.image_size,
        # A few images do not fill a batch. The devices would compute the rest of it for nothing.
        batch_size=min(encoder.batch_size, -(-examples.size // devices) * devices),
        mesh=encoder.mesh,
        progress=progress,
    )
    if not len(found.values):
        raise DataError(f'none of {examples.size} files of {examples.name} is a readable image; give others')
    return found


def unreadable(found: Features, examples: Examples) -> list[str]:
    """The ids of the images that could not be read, and therefore have no features."""
    return np.delete(np.array(examples.ids()), found.index).tolist()


def classes_shown(labels: np.ndarray, class_names: tuple[str, ...]) -> list[list[str]]:
    """Names of the classes of each image. An image without a label has none.

    Args:
        labels: Labels int [N], or [N, K] where an image may have several, see `spec.Examples`.
        class_names: Names of the labels 0..K-1.

    Example:
        >>> classes_shown(np.array([1, -1]), ('cat', 'dog'))
        [['dog'], []]
    """
    if labels.ndim == 2:
        return [[class_names[label] for label in np.flatnonzero(row == 1)] for row in labels]
    return [[class_names[label]] if label >= 0 else [] for label in labels]


def write(path: epath.Path, found: Features, examples: Examples) -> None:
    """Writes features with the ids and labels of their images, completely or not at all.

    An .npz has these arrays: features float32 [N, F], labels int32 [N] or [N, K], ids str [N], and index int32 [N],
    the positions of the images in the split. A .parquet file has the columns id, label, class_name and features, which
    are lists of F float32. A class_name is null where there is none, and a list where an image may have several.

    Args:
        path: File to write, local or gs://. It ends in one of ENDINGS.
        found: Features to write.
        examples: Images of the features.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        (write_features if path.suffix == '.npz' else _write_parquet)(path, found, examples)
    except (OSError, *storage_errors()) as error:
        why = getattr(error, 'strerror', None) or first_line(error)
        raise ConfigError([f'{path} cannot be written: {why}; choose another']) from error


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
