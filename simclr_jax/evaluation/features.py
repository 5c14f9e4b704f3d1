"""Features of a data set: all devices encode its images in batches, and the host receives the arrays."""

import collections
import dataclasses
import hashlib
import zipfile
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from simclr_jax import sharding
from simclr_jax.augment.policy import CENTER_CROP_PROPORTION
from simclr_jax.config.storage import storage_errors, versions
from simclr_jax.data.reader import eval_batches
from simclr_jax.data.spec import Batch, Decoded, Encoded, Examples, Files, Share
from simclr_jax.training.workdir import write_whole

# Batches whose features the host has not fetched yet. With several, the devices need not wait for the host.
IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of images, with their labels.

    Attributes:
        values: Features, float32 [N, F].
        labels: Labels int32 [N] (-1: none), or [N, K] where an image may have several (1: present, 0: absent,
            -1: ignored).
        index: Positions of the images in the split, int32 [N].
    """

    values: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    def rows(self, chosen: np.ndarray) -> 'Features':
        """Some of the rows, by their numbers or a mask."""
        return Features(self.values[chosen], self.labels[chosen], self.index[chosen])

    def labelled(self) -> 'Features':
        """The images with a label."""
        known = self.labels >= 0
        return self.rows(np.flatnonzero(known if known.ndim == 1 else known.any(axis=1)))


def features_of(
    encode: Callable[[jax.Array], jax.Array],
    examples: Examples,
    *,
    image_size: int,
    batch_size: int,
    mesh: Mesh,
    kept: float = CENTER_CROP_PROPORTION,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Features:
    """Computes the features of the readable images of a split. Each process of a job reads its share of the images.

    Args:
        encode: Encoder, see `extract`.
        examples: Split to encode.
        image_size: Side of the images that are encoded, pixels.
        batch_size: Images per batch, a multiple of the number of devices.
        mesh: Devices that encode.
        kept: Share of an image's shorter side that the central crop keeps, in (0, 1].
        limit: Number of images, the first of the split. None means all.
        progress: Function that receives the number of images after each batch.

    Returns:
        The features of all processes' images, in each process.
    """
    batches = eval_batches(
        examples,
        image_size,
        batch_size=batch_size,
        kept=kept,
        share=Share.of_this_process(mesh),
        limit=limit,
    )
    return extract(encode, batches, mesh, progress)


def extract(
    encode: Callable[[jax.Array], jax.Array],
    batches: Iterator[Batch],
    mesh: Mesh,
    progress: Callable[[int], None] = lambda count: None,
) -> Features:
    """Encodes every image once. Rows of mask 0 are left out.

    Args:
        encode: Jitted function, images [B, H, W, 3] -> features [B, F]. The rows are divided among the devices.
        batches: Batches of one view, see data/spec.py. There is at least one.
        mesh: Devices that encode.
        progress: Function that receives the number of images after each batch.
    """
    waiting: collections.deque[tuple[jax.Array, Batch]] = collections.deque()
    parts: list[Features] = []

    def fetch() -> None:
        part = _on_host(*waiting.popleft())
        parts.append(part)
        progress(len(part.values))

    for batch in batches:
        images = sharding.to_global({'images': batch['views'][:, 0]}, mesh)['images']
        waiting.append((encode(images), batch))
        if len(waiting) > IN_FLIGHT:
            fetch()
    while waiting:
        fetch()
    return Features(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.index for part in parts]),
    )


def _on_host(features: jax.Array, batch: Batch) -> Features:
    """The features of a batch's images, gathered from all processes."""
    rows = (batch['label'], batch['index'], batch['mask'])
    if jax.process_count() > 1:
        rows = multihost_utils.process_allgather(rows, tiled=True)
    labels, index, mask = rows
    is_image = mask > 0
    return Features(sharding.to_host(features)[is_image], labels[is_image], index[is_image])


def read_features(path: epath.Path, examples: Examples) -> Features | None:
    """Reads features from a file. None if it is missing, damaged, or of other images or labels.

    Args:
        path: File from `write_features`.
        examples: Images and labels that the features must belong to.
    """
    if not path.exists():
        return None
    try:
        with path.open('rb') as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays['digest']) != digest_of(examples):
                return None
            # Earlier versions wrote int64.
            return Features(arrays['features'], arrays['labels'], arrays['index'].astype(np.int32))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, *storage_errors()):
        return None


def write_features(path: epath.Path, found: Features, examples: Examples) -> None:
    """Writes features, labels, index and ids of images to an .npz, completely or not at all.

    Args:
        path: File to write. Its directory is made where it does not exist.
        found: Features to write.
        examples: Images of the features.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        'features': found.values,
        'labels': found.labels,
        'index': found.index,
        'ids': ids_of(examples, found.index),
        'digest': digest_of(examples),
    }
    write_whole(path, lambda file: np.savez(file, **arrays))


def ids_of(examples: Examples, index: np.ndarray) -> np.ndarray:
    """Ids of images by their positions in the split, as an array of strings."""
    return np.array(examples.ids())[index]


def digest_of(examples: Examples) -> str:
    """Text that changes with the images, their order and their labels.

    An image file counts as changed if its path, size or time changes. Of a streamed split only name and size count.
    TensorFlow Datasets gives a changed data set another version in its name.
    """
    digest = hashlib.blake2b(f'{examples.name} {examples.size}'.encode(), digest_size=16)
    content = examples.content
    if isinstance(content, Decoded):
        digest.update(content.images.tobytes())
    elif isinstance(content, Encoded):
        for file in content.files:
            digest.update(file)
    elif isinstance(content, Files):
        for path, version in zip(content.paths, versions(content.paths), strict=True):
            digest.update(f'{path} {version}'.encode())
    if examples.labels is not None:
        digest.update(examples.labels.tobytes())
    return digest.hexdigest()
