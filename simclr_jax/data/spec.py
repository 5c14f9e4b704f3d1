"""The contracts of the data: what describes a split and what a batch holds. No TensorFlow, no JAX at import."""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simclr_jax.config.fields import MAX_IMAGE_PIXELS

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

# One batch: {
#   'views': float32 [B, V, H, W, 3] in [0, 1]   Views of one image lie next to each other. They are uint8 where the
#                                                devices continue the augmentation.
#   'images': uint8 [B, H, W, 3]                 In place of views, where the devices do the whole augmentation.
#   'sizes': float32 [B, 4]                      Height and width on a canvas and in the file, where images lie on one.
#   'label': int32 [B], multi-label [B, K]       -1: none.
#   'mask':  float32 [B]                         1: an image. 0: padding.
#   'index': int32 [B]                           Position of the image in the split. -1: padding.
# }
Batch = dict[str, np.ndarray]

# A batch on its way into the training step: the rows of this process on the host, or global arrays on the devices.
FeedBatch = Mapping[str, 'np.ndarray | jax.Array']


# The line for the user about an image that training leaves out.
SKIPPED = 'Skipped, not a readable image: {}'


class DataError(ValueError):
    """The images cannot be used as configured. The message names them and the cure."""


class NotInMemory(DataError):
    """The images have several sizes, or take too much memory, to be one array.

    Args:
        fact: What is so.
        cure: What the user can do about it.
    """

    def __init__(self, fact: str, cure: str = 'choose data.feed=decoded'):
        super().__init__(f'{fact}; {cure}')
        self.fact = fact


def has_tensorflow() -> bool:
    """Whether TensorFlow is installed. It is not imported."""
    try:
        return importlib.util.find_spec('tensorflow') is not None
    except ModuleNotFoundError:
        return False


@contextlib.contextmanager
def needs_tensorflow(what: str, cure: str) -> Iterator[None]:
    """Turns a missing TensorFlow into a mistake of the user.

    Args:
        what: Subject of the message, for example 'data.source=tfds'.
        cure: Another way than the installation, for example 'choose data.source=folder'.

    Raises:
        DataError: TensorFlow or TensorFlow Datasets is imported inside of the block, and not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or '').partition('.')[0]
        if package not in ('tensorflow', 'tensorflow_datasets'):
            raise
        raise DataError(
            f"{what} needs {package}, which is not installed: pip install 'simclr_jax[tensorflow]', or {cure}"
        ) from error


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Decoded images in memory.

    Attributes:
        images: uint8 [N, H, W, 3], H and W >= 1.

    Raises:
        DataError: The images have another shape or dtype.
    """

    images: np.ndarray

    def __post_init__(self):
        shape = self.images.shape
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or shape[-1] != 3 or 0 in shape[1:]:
            raise _wrong_images(self.images, '[N, H, W, 3]')


@dataclasses.dataclass(frozen=True)
class Encoded:
    """JPEG, PNG, GIF, BMP or WebP files in memory."""

    files: Sequence[bytes]


@dataclasses.dataclass(frozen=True)
class Files:
    """Paths of image files, read when needed. Some of the files may turn out not to be images."""

    paths: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Packed:
    """Image files in shards on a local disk, read one by one when needed, see packed.py.

    Attributes:
        shards: Paths of the shards.
        shard: Shard of each image, int [N].
        start: First byte of each image's file in its shard, int [N].
        length: Bytes of each image's file, int [N].
        ids: Id of each image where it was packed from.
        digest: Text that changes with the bytes of the images.
    """

    shards: Sequence[str]
    shard: np.ndarray
    start: np.ndarray
    length: np.ndarray
    ids: Sequence[str]
    digest: str


@dataclasses.dataclass(frozen=True)
class Streamed:
    """Images too large for the memory: records in shards. A shard is always read from its beginning.

    Attributes:
        shard_sizes: Records of each shard.
        read: Function from a shard, a scalar int64 tensor, to its tf.data.Dataset of (index, record) in stored order.
        parse: Function from a record to (encoded image, label).
        lanes: Largest number of parts of the split that are read side by side.
        shuffle_buffer: Records from which the next one is drawn, in all lanes together.
        ids: Id of each image. None means that its place in the split identifies it.
        digest: Text that changes with the bytes of the images, '' where only the split's name identifies them.
        cure: What makes the images ones that are not streamed.
    """

    shard_sizes: Sequence[int]
    read: Callable[[Any], Any]
    parse: Callable[[Any], Any]
    lanes: int
    shuffle_buffer: int
    ids: Sequence[str] | None = None
    digest: str = ''
    cure: str = 'raise data.memory_limit_gb'


@dataclasses.dataclass(frozen=True)
class Share:
    """Rows of each global batch that one process reads: the `index`-th of `count` equal parts."""

    index: int = 0
    count: int = 1

    @classmethod
    def of_this_process(cls, mesh: 'Mesh') -> 'Share':
        """The share of this process among the processes of a mesh.

        Args:
            mesh: Devices that receive the batches, some of them of this process.
        """
        import jax

        processes = sorted({device.process_index for device in mesh.devices.flat})
        return cls(processes.index(jax.process_index()), len(processes))

    def rows(self, batch_size: int) -> range:
        """Places of these rows in a global batch, whose size is a multiple of `count`."""
        own = batch_size // self.count
        return range(self.index * own, (self.index + 1) * own)


@dataclasses.dataclass(frozen=True)
class Reading:
    """Threads and buffers of the host's pipeline. Neither pixels nor their order depend on them.

    Attributes:
        threads: Threads in a pool for this pipeline. 0 means one per core, those of TensorFlow where it reads.
        parallel_calls: Images that tf.data decodes and augments at the same time. 0 means that it tunes that.
        prefetch: Batches that are prepared ahead. 0 means that tf.data tunes it, or two without it.
    """

    threads: int = 0
    parallel_calls: int = 0
    prefetch: int = 2


@dataclasses.dataclass(frozen=True)
class Examples:
    """One split of a data set: its name, its labels and the place of its images.

    Attributes:
        name: Name of the split, for messages.
        size: Number of images N.
        content: The images.
        labels: int32 [N], -1: none. Multi-label: int32 [N, K], 1: present, 0: absent, -1: ignored (for example VOC's
            difficult objects). None before a streamed split is read.
        class_names: Names of the labels 0..K-1. Empty if there are none.
        positions: Positions of these images in the split `name`, int64 [N]. None means that they are all of it.
        max_pixels: Largest number of pixels of an encoded image. A file with more is not a readable image.
        notes: Lines for the user about the split, for example what was left out of it.
    """

    name: str
    size: int
    content: Decoded | Encoded | Files | Packed | Streamed
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    positions: np.ndarray | None = None
    max_pixels: int = MAX_IMAGE_PIXELS
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes K, or 0 without labels."""
        return len(self.class_names)

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may show several classes. Such a split is never streamed."""
        return self.labels is not None and self.labels.ndim == 2

    def ids(self) -> list[str]:
        """Identifies each image outside of this program: its file's path, or the split's name and a number."""
        return [self.id_of(index) for index in range(self.size)]

    def id_of(self, index: int) -> str:
        """Identifies one image, see `ids`.

        Args:
            index: Index of the image, in 0..N - 1.
        """
        if isinstance(self.content, Files):
            return self.content.paths[index]
        if isinstance(self.content, Packed | Streamed) and self.content.ids is not None:
            return self.content.ids[index]
        return f'{self.name}/{index if self.positions is None else self.positions[index]}'


def three_channels(images: np.ndarray) -> np.ndarray:
    """Converts images to three channels. Grey is repeated, alpha is dropped.

    Args:
        images: uint8 [N, H, W], [N, H, W, 1], [N, H, W, 3] or [N, H, W, 4].

    Returns:
        uint8 [N, H, W, 3].

    Raises:
        DataError: The images have another shape or dtype.
    """
    wanted = images[..., None] if images.ndim == 3 else images
    if wanted.dtype != np.uint8 or wanted.ndim != 4 or wanted.shape[-1] not in (1, 3, 4):
        raise _wrong_images(images, '[N, H, W], or [N, H, W, C] with 1, 3 or 4 channels')
    return np.repeat(wanted, 3, axis=-1) if wanted.shape[-1] == 1 else wanted[..., :3]


def _wrong_images(images: np.ndarray, rule: str) -> DataError:
    """The error about an array of images. It names the first image with pixels that are not finite."""
    text, cure = f'images are {images.dtype} {list(images.shape)}', ''
    if np.issubdtype(images.dtype, np.floating) and images.ndim:
        cure = '; floats in [0, 1] become bytes by numpy.round(255 * images).astype(numpy.uint8)'
        damaged = ~np.isfinite(images).reshape(len(images), -1).all(axis=1)
        if damaged.any():
            text += f', and pixels of image {np.argmax(damaged)} are not finite'
    return DataError(f'{text}; must be uint8 {rule}{cure}')
