"""The contracts of the data: what describes a split and what a batch holds. No TensorFlow, no JAX at import."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

# One batch: {
#   'views': float32 [B, V, H, W, 3] in [0, 1]   Views of one image lie next to each other. They are uint8 where the
#                                                devices continue the augmentation.
#   'images': uint8 [B, H, W, 3]                 In place of views, where the devices do the whole augmentation.
#   'label': int32 [B], multi-label [B, K]       -1: none.
#   'mask':  float32 [B]                         1: an image. 0: padding.
#   'index': int32 [B]                           Position of the image in the split. -1: padding.
# }
Batch = dict[str, np.ndarray]

# A batch on its way into the training step: the rows of this process on the host, or global arrays on the devices.
FeedBatch = Mapping[str, 'np.ndarray | jax.Array']


class DataError(ValueError):
    """The images cannot be used as configured. The message names them and the cure."""


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Decoded images in memory: uint8 [N, H, W, 3]."""

    images: np.ndarray


@dataclasses.dataclass(frozen=True)
class Encoded:
    """JPEG, PNG, GIF, BMP or WebP files in memory."""

    files: Sequence[bytes]


@dataclasses.dataclass(frozen=True)
class Files:
    """Paths of image files, read when needed. Some of the files may turn out not to be images."""

    paths: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Streamed:
    """Images too large for the memory: records in shards. A shard is always read from its beginning.

    Attributes:
        shard_sizes: Records of each shard.
        read: Function from a shard, a scalar int64 tensor, to its tf.data.Dataset of (index, record) in stored order.
        parse: Function from a record to (encoded image, label).
        lanes: Largest number of parts of the split that are read side by side.
        shuffle_buffer: Records from which the next one is drawn, in all lanes together.
    """

    shard_sizes: Sequence[int]
    read: Callable[[Any], Any]
    parse: Callable[[Any], Any]
    lanes: int
    shuffle_buffer: int


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
        threads: Threads in a pool for this pipeline. 0 means TensorFlow's shared pool, one thread per core.
        parallel_calls: Images that are decoded and augmented at the same time. 0 means that tf.data tunes it.
        prefetch: Batches that are prepared ahead. 0 means that tf.data tunes it.
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
    """

    name: str
    size: int
    content: Decoded | Encoded | Files | Streamed
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    positions: np.ndarray | None = None

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
        if isinstance(self.content, Files):
            return list(self.content.paths)
        positions = range(self.size) if self.positions is None else self.positions
        return [f'{self.name}/{position}' for position in positions]


def three_channels(images: np.ndarray) -> np.ndarray:
    """Converts images to three channels. Grey is repeated, alpha is dropped.

    Args:
        images: uint8 [N, H, W], [N, H, W, 1], [N, H, W, 3] or [N, H, W, 4].

    Returns:
        uint8 [N, H, W, 3].

    Raises:
        DataError: The images have another shape or dtype.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise DataError(
            f'images are {images.dtype} {list(images.shape)}; must be uint8 [N, H, W], or [N, H, W, C] '
            'with 1, 3 or 4 channels'
        )
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images[..., :3]
