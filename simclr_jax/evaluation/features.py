"""Features of a data set: all devices encode its images in batches, and the host receives the arrays."""

import collections
import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator

import jax
import numpy as np
import PIL
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from simclr_jax import sharding
from simclr_jax.augment.policy import CENTER_CROP_PROPORTION
from simclr_jax.config.storage import first_line, storage_errors, versions
from simclr_jax.config.whole_file import write_whole
from simclr_jax.data.reader import eval_batches
from simclr_jax.data.spec import Batch, Decoded, Encoded, Examples, Files, Packed, Share, Streamed
from simclr_jax.training.workdir import clear_place

# Batches whose features the host has not fetched yet. With several, the devices need not wait for the host.
IN_FLIGHT = 2
# Number of the program's own way from an image to the pixels that are encoded. It grows when that changes, so that
# kept features are computed again.
PIXELS = 2


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


def read_features(path: epath.Path, examples: Examples, say: Callable[[str], None] = print) -> Features | None:
    """Reads features from a file. None if it is missing, damaged, or of other images, labels or pixels.

    Args:
        path: File from `write_features`.
        examples: Images and labels that the features must belong to.
        say: Function that receives a line for the user if the file is damaged.
    """
    if not path.exists():
        return None
    digest = digest_of(examples)
    try:
        with path.open('rb') as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays['digest']) != digest:
                return None
            # Earlier versions wrote int64.
            found = Features(arrays['features'], arrays['labels'], arrays['index'].astype(np.int32))
    except Exception:
        # Damaged archives raise errors of many classes in the readers of zip files and of arrays.
        found = None
    if found is None or not _belong_to(found, examples):
        say(f'{path} is damaged; its features are computed again.')
        return None
    return found


def _belong_to(found: Features, examples: Examples) -> bool:
    """Whether these can be the features of a split."""
    count, index = len(found.index), found.index
    if found.values.dtype != np.float32 or found.values.ndim != 2 or index.ndim != 1:
        return False
    # Every image in memory is readable.
    if {len(found.values), len(found.labels)} != {count} or (
        isinstance(examples.content, Decoded) and count != examples.size
    ):
        return False
    if len(np.unique(index)) < count or (index < 0).any() or (index >= examples.size).any():
        return False
    return examples.labels is None or np.array_equal(found.labels, examples.labels[index])


def keep_features(path: epath.Path, found: Features, examples: Examples, say: Callable[[str], None] = print) -> bool:
    """Writes features to the work directory's cache. If that is impossible, a line says so.

    Args:
        path: File in `features/IDENTITY/` of a work directory. What stands in the place of it or of its directories is
            set aside.
        found: Features to write.
        examples: Images of the features.
        say: Function that receives lines for the user.

    Returns:
        Whether they are written.
    """
    try:
        for directory in (path.parent.parent, path.parent):
            clear_place(directory, say, of_directory=True)
        clear_place(path, say)
        write_features(path, found, examples)
    except (OSError, *storage_errors()) as error:
        why = getattr(error, 'strerror', None) or first_line(error)
        say(f'{path} cannot be written ({why}); these features are not kept.')
        return False
    return True


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
    """Text that changes with the images, their pixels, their order and their labels.

    An image file counts as changed if its path, size or time changes. Of a streamed split only name and size count.
    TensorFlow Datasets gives a changed data set another version in its name.
    """
    content = examples.content
    name = f'{examples.name} {examples.size} {PIXELS} {_decoder(content)} {examples.max_pixels}'
    digest = hashlib.blake2b(name.encode(errors='surrogateescape'), digest_size=16)
    if isinstance(content, Decoded):
        digest.update(content.images.tobytes())
    elif isinstance(content, Encoded):
        for file in content.files:
            digest.update(file)
    elif isinstance(content, Packed):
        digest.update(content.digest.encode())
        for places in (content.shard, content.start):
            digest.update(places.astype(np.int64).tobytes())
    elif isinstance(content, Streamed):
        digest.update(content.digest.encode())
    elif isinstance(content, Files):
        for path, version in zip(content.paths, versions(content.paths), strict=True):
            digest.update(f'{path} {version}'.encode())
    if examples.labels is not None:
        digest.update(examples.labels.tobytes())
    return digest.hexdigest()


def _decoder(content: Decoded | Encoded | Files | Packed | Streamed) -> str:
    """The library that makes pixels of image files. Two of them, or two versions, may differ by a few units."""
    if isinstance(content, Decoded):
        return ''
    if isinstance(content, Streamed):
        return 'TensorFlow'
    return f'Pillow {PIL.__version__} simplejpeg {importlib.metadata.version("simplejpeg")}'
