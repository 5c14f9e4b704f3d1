"""Whole images for evaluation, pictures and the devices' memory: decoded by threads of this process. No TensorFlow.

Pillow and NumPy release Python's lock while they work. Only streamed splits are read by TensorFlow, see pipeline.py.
"""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from simclr_jax.augment.center import center_crop
from simclr_jax.augment.policy import CENTER_CROP_PROPORTION
from simclr_jax.data import images, packed
from simclr_jax.data.select import select
from simclr_jax.data.spec import (
    SKIPPED,
    Batch,
    DataError,
    Decoded,
    Encoded,
    Examples,
    Files,
    NotInMemory,
    Packed,
    Share,
    Streamed,
    needs_tensorflow,
)

# Largest number of images, and of their encoded bytes, in one task of a thread. A task costs as much as a tiny image.
_BLOCK, _BLOCK_BYTES = 32, 2**16
# Largest number of threads, and tasks for each of them that are begun before their results are needed.
_THREADS, _AHEAD = 16, 2
# Images that a training tries in the place of an unreadable one, itself included.
SUBSTITUTES = 8
# Images that a message names.
_NAMED = 20

In = TypeVar('In')
Out = TypeVar('Out')


def eval_batches(
    examples: Examples,
    image_size: int,
    *,
    batch_size: int,
    kept: float = CENTER_CROP_PROPORTION,
    share: Share = Share(),
    limit: int | None = None,
) -> Iterator[Batch]:
    """Every image once, in the order of the split, as one view: SimCLR's central crop for evaluation.

    Images that are not readable are left out. The last batches are filled with rows of mask 0, so that all processes
    have the same number of batches.

    Args:
        examples: Split to read.
        image_size: Height and width of the view, in pixels.
        batch_size: Images per global batch, a multiple of share.count.
        kept: Share of the shorter side in the crop, see `center.center_crop`.
        share: Rows of this process.
        limit: Number of images, the first of the split. None means all.

    Raises:
        DataError: The split is streamed, and TensorFlow is not installed.
    """
    size = examples.size if limit is None else min(limit, examples.size)
    count = -(-size // batch_size)
    rows = batch_size // share.count
    if isinstance(examples.content, Streamed):
        with needs_tensorflow(f'the streamed split {examples.name}', examples.content.cure):
            from simclr_jax.data.pipeline import streamed_views
        found = streamed_views(examples, image_size, batch_size=batch_size, kept=kept, share=share, size=size)
    else:
        own = share.rows(batch_size)
        indices = np.arange(count * batch_size).reshape(count, batch_size)[:, own.start : own.stop].ravel()
        found = _views(examples, indices[indices < size], image_size, kept)
    return _filled(found, examples, image_size, rows, count)


def _views(examples: Examples, indices: np.ndarray, size: int, kept: float) -> Iterator[tuple[np.ndarray, int, object]]:
    """(view, index, label) of each readable image."""
    assert examples.labels is not None, 'only streamed splits have unread labels'
    labels, content = examples.labels, examples.content

    def block_of(block: np.ndarray) -> list[tuple[int, np.ndarray]]:
        if isinstance(content, Decoded):
            return list(zip(block.tolist(), center_crop(content.images[block], size, kept), strict=True))
        return [(index, center_crop(image, size, kept)) for index, image in _readable(examples, block)]

    for block in in_order(block_of, _blocks(examples, indices)):
        for index, view in block:
            yield view, index, labels[index]


def _filled(found: Iterable, examples: Examples, image_size: int, rows: int, count: int) -> Iterator[Batch]:
    """`count` batches of `rows` rows: the views that were found, then padding."""
    found = iter(found)
    label_shape = () if examples.labels is None else examples.labels.shape[1:]
    for _ in range(count):
        batch = {
            'views': np.zeros([rows, 1, image_size, image_size, 3], np.float32),
            'label': np.full([rows, *label_shape], -1, np.int32),
            'mask': np.zeros([rows], np.float32),
            'index': np.full([rows], -1, np.int32),
        }
        for row, (view, index, label) in zip(range(rows), found, strict=False):
            batch['views'][row, 0], batch['label'][row] = view, label
            batch['mask'][row], batch['index'][row] = 1, index
        yield batch


def images_at(examples: Examples, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Chosen images in their own sizes, each once, in the order of the split.

    Images that are not readable are left out. A streamed split is read up to the last chosen image.

    Args:
        examples: Split to read.
        indices: Indices of images in the split.

    Yields:
        (index, uint8 [H, W, 3]), one pair per image.

    Raises:
        DataError: The split is streamed, and TensorFlow is not installed.
    """
    wanted = np.unique(np.asarray(indices, np.int64))
    if isinstance(examples.content, Streamed):
        with needs_tensorflow(f'the streamed split {examples.name}', examples.content.cure):
            from simclr_jax.data.pipeline import streamed_images
        yield from streamed_images(examples, wanted)
        return
    for block in in_order(lambda block: list(_readable(examples, block)), _blocks(examples, wanted)):
        yield from block


def decode_all(examples: Examples, most_bytes: float, max_unreadable: float = 0.0) -> Examples:
    """Decodes all images of a split into the memory of this process. Images that are not readable are left out.

    Args:
        examples: Split to read.
        most_bytes: Largest size of the result, in bytes. It is checked when the first image is decoded.
        max_unreadable: Tolerated share of images that are not readable, in [0, 1].

    Returns:
        The split with content `Decoded`. A note names each image that is left out.

    Raises:
        NotInMemory: The split is streamed, has several sizes of images or takes more than `most_bytes`.
        DataError: Too many images are not readable.
    """
    if isinstance(examples.content, Streamed):
        raise NotInMemory(f'{examples.name} is too large to be in memory as a whole')
    if isinstance(examples.content, Decoded):
        _check_bytes(examples, examples.content.images.nbytes, most_bytes)
        return examples
    decoded, is_readable = np.empty([0, 0, 0, 3], np.uint8), np.zeros(examples.size, bool)
    for index, image in images_at(examples, range(examples.size)):
        if not len(decoded):
            _check_bytes(examples, examples.size * image.nbytes, most_bytes)
            decoded = np.empty((examples.size, *image.shape), np.uint8)
        if image.shape != decoded.shape[1:]:
            raise NotInMemory(
                f'{examples.name} has images of several sizes, {decoded.shape[1:3]} and {image.shape[:2]}',
                'choose data.feed=decoded, or give all images one size',
            )
        decoded[index], is_readable[index] = image, True
    unreadable = [examples.id_of(int(index)) for index in np.flatnonzero(~is_readable)]
    check_unreadable(examples, unreadable, max_unreadable)
    notes = (*examples.notes, *map(SKIPPED.format, unreadable))
    whole = dataclasses.replace(examples, content=Decoded(decoded), notes=notes)
    return select(whole, np.flatnonzero(is_readable)) if unreadable else whole


def substitutes(size: int) -> list[int]:
    """Distances in an epoch from an image to those that are tried in its place, itself first.

    They are half an epoch apart, so that a substitute is rarely in the same batch already.

    Args:
        size: Number of images of the split.
    """
    step = size // 2 + 1 if size > 2 else 1
    return [number * step for number in range(SUBSTITUTES)]


class Unreadable:
    """Keeps account of the images of a split that a training met and could not read.

    Args:
        examples: The split.
        allowed: Tolerated share of its images, in [0, 1].
    """

    def __init__(self, examples: Examples, allowed: float):
        self._examples, self._allowed = examples, allowed
        self._met: dict[int, str] = {}

    @property
    def ids(self) -> list[str]:
        """Ids of the images met so far that are not readable, sorted."""
        return sorted(self._met.values())

    def checked(self, batch: Batch) -> Batch:
        """Takes note of what is missing from a batch, and fills it.

        Args:
            batch: Rows with 'index', -1 where no image was found, and 'wanted', the image of the order.

        Returns:
            The batch without 'wanted'. Another row of it stands in the place of each missing row of a streamed split.

        Raises:
            DataError: Too many images are not readable, see `check_unreadable`, or a row of a split that is not
                streamed is missing.
        """
        index, wanted = batch['index'], batch['wanted']
        for missing in wanted[wanted != index].tolist():
            self._met[missing] = self._examples.id_of(missing)
        check_unreadable(self._examples, self.ids, self._allowed)
        is_missing = index < 0
        if is_missing.any():
            if is_missing.all() or not isinstance(self._examples.content, Streamed):
                raise too_many_unreadable(self._examples, self.ids, self._allowed)
            batch = _filled_up(batch, is_missing)
        return {name: rows for name, rows in batch.items() if name != 'wanted'}


def _filled_up(batch: Batch, is_missing: np.ndarray) -> Batch:
    """Puts the next readable row of a batch in the place of each row that is missing."""
    (readable,) = np.nonzero(~is_missing)
    following = readable[np.searchsorted(readable, np.arange(len(is_missing))) % len(readable)]
    return {name: rows[following] for name, rows in batch.items()}


def check_unreadable(
    examples: Examples, unreadable: Sequence[str], allowed: float, field: str = 'data.max_unreadable'
) -> None:
    """Refuses a split of which too many images are not readable.

    Args:
        examples: The split.
        unreadable: Ids of the images that are not readable.
        allowed: Tolerated share, in [0, 1]. A split without any readable image is always refused.
        field: Name of that limit, for the message.

    Raises:
        DataError: There are more. The message names them.
    """
    if len(unreadable) > allowed * examples.size or len(unreadable) == examples.size:
        raise too_many_unreadable(examples, unreadable, allowed, field)


def too_many_unreadable(
    examples: Examples, unreadable: Sequence[str], allowed: float, field: str = 'data.max_unreadable'
) -> DataError:
    """The error that names images of a split that are not readable. The arguments are those of `check_unreadable`."""
    count = len(unreadable)
    things = 'files' if isinstance(examples.content, Files) else 'images'
    named = list(unreadable[:_NAMED]) + ([f'and {count - _NAMED} more'] if count > _NAMED else [])
    return DataError(
        f'{count} of {examples.size} {things} of {examples.name} are not readable images, more than '
        f'{field}={allowed} allows; remove them, or raise it:\n  ' + '\n  '.join(named)
    )


def _check_bytes(examples: Examples, size: int, most_bytes: float) -> None:
    if size > most_bytes:
        raise NotInMemory(f'{examples.name} takes {size:,} bytes in memory, more than {most_bytes:,.0f}')


def _readable(examples: Examples, indices: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(index, uint8 [H, W, 3]) of each readable image among the chosen ones."""
    content, most = examples.content, examples.max_pixels
    for index in map(int, indices):
        if isinstance(content, Decoded):
            yield index, content.images[index]
            continue
        assert not isinstance(content, Streamed)
        try:
            image = images.decode(read_file(content, index, most), most)
        except images.ImageError:
            continue
        yield index, image


def read_file(content: Encoded | Files | Packed, index: int, max_pixels: int) -> bytes:
    """The encoded image at a position of a split.

    Args:
        content: Content of the split.
        index: Index of the image.
        max_pixels: See `images.read_bytes`.

    Raises:
        ImageError: The file cannot be read.
    """
    if isinstance(content, Encoded):
        return content.files[index]
    if isinstance(content, Packed):
        return packed.file_of(content, index)
    return images.read_bytes(content.paths[index], max_pixels)


def _blocks(examples: Examples, indices: np.ndarray) -> list[np.ndarray]:
    """Divides indices into the tasks of threads: one large image each, or several small ones."""
    content, size = examples.content, 1
    if isinstance(content, Decoded):
        size = _BLOCK
    elif isinstance(content, Encoded) and len(indices):
        size = _BLOCK_BYTES // (1 + max(len(content.files[int(index)]) for index in indices[:_BLOCK]))
        size = min(max(size, 1), _BLOCK)
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def num_threads() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def in_order(function: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """Results of a function that threads apply to items, in the order of the items."""
    workers = min(num_threads(), _THREADS)
    pool, waiting = ThreadPoolExecutor(workers), collections.deque[Future[Out]]()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
