"""The contracts of the data: what a source describes and what a batch holds. No TensorFlow, no JAX."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# One batch: {
#   'views': float32 [B, V, H, W, 3] in [0, 1]   the views of one image stand next to each other; uint8 where the
#                                                devices go on with the augmentation
#   'images': uint8 [B, H, W, 3]                 in place of views, where the devices make them from the beginning
#   'label': int32 [B], or [B, K] of several     -1: none
#   'mask':  float32 [B]                         0: padding, not an image
#   'index': int64 [B]                           which image of the split; -1: padding
# }
Batch = dict[str, np.ndarray]


class DataError(ValueError):
    """The images cannot be used as asked; the message names them and the cure."""


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Images in memory: uint8 [N, H, W, 3]."""

    images: np.ndarray


@dataclasses.dataclass(frozen=True)
class Encoded:
    """JPEG, PNG, GIF, BMP or WebP files in memory."""

    files: Sequence[bytes]


@dataclasses.dataclass(frozen=True)
class Files:
    """Paths of image files, read when needed; some may turn out to be no images."""

    paths: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Streamed:
    """Too many to hold: records in shards, each read from its beginning.

    Attributes:
        shard_sizes: records of each shard.
        read: shard, a scalar int64 tensor -> tf.data.Dataset of (index, record) in the order in which they are stored.
        parse: record -> (encoded image, label).
        lanes: parts of the split that are read side by side at most.
        shuffle_buffer: records among which the next one is drawn, in all lanes together.
    """

    shard_sizes: Sequence[int]
    read: Callable[[Any], Any]
    parse: Callable[[Any], Any]
    lanes: int
    shuffle_buffer: int


@dataclasses.dataclass(frozen=True)
class Share:
    """Which rows of each global batch this process reads: the `index`-th of `count` equal parts."""

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> range:
        """Those of a batch whose size is a multiple of `count`."""
        own = batch_size // self.count
        return range(self.index * own, (self.index + 1) * own)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the host works at a pipeline; no pixel and no order depends on it.

    Attributes:
        threads: of a pool of its own; 0: TensorFlow's, one a core.
        parallel_calls: images that are decoded and augmented at the same time; 0: tf.data finds it out.
        prefetch: batches that are ready before they are asked for; 0: tf.data finds it out.
    """

    threads: int = 0
    parallel_calls: int = 0
    prefetch: int = 2


@dataclasses.dataclass(frozen=True)
class Examples:
    """One split of a data set: what it is called, its labels and where its images are.

    Attributes:
        name: for messages.
        size: number of images N.
        content: the images.
        labels: int32 [N], -1: none. Multi-label: int32 [N, K], 1: present, 0: absent, -1: ignored (as VOC's
            objects that are difficult). Unknown (None) before a streamed split is read.
        class_names: of the labels 0..K-1; empty if there are none.
        positions: int64 [N], of these images in the split that `name` names; None: they are all of it.
    """

    name: str
    size: int
    content: Decoded | Encoded | Files | Streamed
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    positions: np.ndarray | None = None

    @property
    def num_classes(self) -> int:
        """K, or 0 without labels."""
        return len(self.class_names)

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may show several classes; such a split is never streamed."""
        return self.labels is not None and self.labels.ndim == 2

    def ids(self) -> list[str]:
        """What identifies each image outside of this program: its file's path, or the split's name and a number."""
        if isinstance(self.content, Files):
            return list(self.content.paths)
        positions = range(self.size) if self.positions is None else self.positions
        return [f'{self.name}/{position}' for position in positions]


def three_channels(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W], [N, H, W, 1], [N, H, W, 3] or [N, H, W, 4] -> [N, H, W, 3]; alpha is dropped.

    Raises:
        DataError: another shape or type.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise DataError(
            f'images are {images.dtype} {list(images.shape)}; must be uint8 [N, H, W], or [N, H, W, C] '
            'with 1, 3 or 4 channels'
        )
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images[..., :3]
