"""Features of a data set: images in batches, on all devices, to arrays on the host."""

import collections
import dataclasses
import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from simclr_jax import sharding
from simclr_jax.augment.policy import CENTER_CROP_PROPORTION
from simclr_jax.data.spec import Batch, Decoded, Encoded, Examples, Files, Share
from simclr_jax.training.workdir import write_whole

# Batches that the devices have been given and whose features are not fetched yet: they need not wait for the host.
IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Features:
    """What an encoder makes of a data set.

    Attributes:
        values: float32 [N, F].
        labels: int32 [N], or [N, K] where an image has several; -1: none.
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
        return self.rows(known if known.ndim == 1 else known.any(axis=1))


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
    """Features of the readable images of a split, read by all processes together.

    Args:
        encode, mesh, progress: see `extract`.
        examples: the split.
        image_size, kept, limit: see `data.pipeline.eval_batches`.
        batch_size: images at a time, a multiple of the devices.
    """
    from simclr_jax.data.pipeline import eval_batches

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
    """Encodes every image once; rows of mask 0 are left out.

    Args:
        encode: jitted, images [B, H, W, 3] -> features [B, F], rows divided among the mesh's devices.
        batches: of one view, see data/spec.py; one at least.
        mesh: the devices.
        progress: called with the number of images each time that some have been encoded.
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
    """The features of a batch's images, of all processes."""
    rows = (batch['label'], batch['index'], batch['mask'])
    if jax.process_count() > 1:
        rows = multihost_utils.process_allgather(rows, tiled=True)
    labels, index, mask = rows
    is_image = mask > 0
    return Features(sharding.to_host(features)[is_image], labels[is_image], index[is_image])


def read_features(path: epath.Path, examples: Examples) -> Features | None:
    """Features written for just these images and labels; None if there are none."""
    if not path.exists():
        return None
    try:
        with path.open('rb') as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays['digest']) != digest_of(examples):
                return None
            # Files of earlier versions hold int64.
            return Features(arrays['features'], arrays['labels'], arrays['index'].astype(np.int32))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write_features(path: epath.Path, found: Features, examples: Examples) -> None:
    """Writes features, labels, index and ids of a split's images to an .npz, whole or not at all."""
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
    """Identification of images by their index in the split, as an array of strings."""
    return np.array(examples.ids())[index]


def digest_of(examples: Examples) -> str:
    """Changes with the images, of files with their sizes and times, and with their labels and order.

    Of a streamed split only name and size are known; TensorFlow Datasets has its version in the name of a data set
    that was changed.
    """
    digest = hashlib.blake2b(f'{examples.name} {examples.size}'.encode(), digest_size=16)
    content = examples.content
    if isinstance(content, Decoded):
        digest.update(content.images.tobytes())
    elif isinstance(content, Encoded):
        for file in content.files:
            digest.update(file)
    elif isinstance(content, Files):
        for path in content.paths:
            status = os.stat(path)
            digest.update(f'{path} {status.st_size} {status.st_mtime_ns}'.encode())
    if examples.labels is not None:
        digest.update(examples.labels.tobytes())
    return digest.hexdigest()
