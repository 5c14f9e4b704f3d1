"""Batches of whole images of several sizes: decoded by threads into canvases of one size. No TensorFlow.

An image lies in the upper left corner of its canvas. Where it is larger than the canvas it is decoded smaller, see
`images.decode_within`. The devices crop boxes that were drawn for the image as it is in its file.

The order is that of `resident.images_of_step`. Streamed splits are read by TensorFlow, in the order of streams.py.
"""

import collections
import dataclasses
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from simclr_jax.data import images
from simclr_jax.data.reader import Unreadable, num_threads, read_file, substitutes
from simclr_jax.data.resident import images_at_positions
from simclr_jax.data.spec import Batch, Decoded, Examples, Reading, Share, Streamed, needs_tensorflow

# Rows of a batch in one task of a thread.
_BLOCK = 4
# Batches that are begun before the first of them is needed, unless `Reading` says how many.
_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The files of a batch, R rows of one process.

    Attributes:
        candidates: Indices of the images to try for each row, int64 [R, tries].
        file_of: Function of a row and a candidate that gives the content of the file. It may raise ImageError.
        labels_of: Function of the indices of the images found, int32 [R], to their labels, int32 [R].
    """

    candidates: np.ndarray
    file_of: Callable[[int, int], bytes]
    labels_of: Callable[[np.ndarray], np.ndarray]


class CanvasBatches(Iterator[Batch]):
    """Endless batches {'images': uint8 [R, S, S, 3], 'sizes': float32 [R, 4], 'label', 'mask', 'index'}.

    'sizes' are height and width on the canvas, then in the file, see `images.Fitted`. R are the rows of this process.

    Args:
        examples: Split to read. Its images are not decoded.
        side: Height and width S of a canvas, in pixels.
        batch_size: Images per global batch, a multiple of share.count.
        seed: Seed of the order.
        start_step: Step of the first batch.
        share: Rows of this process.
        max_unreadable: Tolerated share of the split's images that are not readable, in [0, 1].
        reading: Threads, and batches prepared ahead. 0 threads means one for each core.

    Attributes:
        unreadable: Ids of the images met so far that are not readable. Another image took the place of each.

    Raises:
        DataError: More images than `max_unreadable` allows are not readable. Raised by `next`. Or the split is
            streamed, and TensorFlow is not installed.
    """

    def __init__(
        self,
        examples: Examples,
        side: int,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        share: Share = Share(),
        max_unreadable: float = 0.0,
        reading: Reading = Reading(),
    ):
        self._met = Unreadable(examples, max_unreadable)
        order = {'batch_size': batch_size, 'seed': seed, 'start_step': start_step, 'share': share}
        if isinstance(examples.content, Streamed):
            rows = _streamed_rows(examples, **order, reading=reading)
        else:
            rows = _chosen_rows(examples, **order)
        pool = ThreadPoolExecutor(reading.threads or num_threads(), 'simclr-decode')
        self._batches = _decoded(rows, pool, side, examples.max_pixels, reading.prefetch or _AHEAD)
        # Also at the end of the program, before Python takes the modules apart.
        weakref.finalize(self, pool.shutdown, wait=False, cancel_futures=True)

    @property
    def unreadable(self) -> list[str]:
        """Ids of the images met so far that are not readable, sorted."""
        return self._met.ids

    def __next__(self) -> Batch:
        return self._met.checked(next(self._batches))


def _chosen_rows(examples: Examples, *, batch_size: int, seed: int, start_step: int, share: Share) -> Iterator[_Rows]:
    """The batches of a split whose files are at hand, in any order."""
    content, labels, size = examples.content, examples.labels, examples.size
    assert not isinstance(content, Decoded | Streamed)
    assert labels is not None, 'only streamed splits have unread labels'
    aside = np.array(substitutes(size))
    own = np.array(share.rows(batch_size))

    for step in itertools.count(start_step):
        yield _Rows(
            candidates=images_at_positions(step * batch_size + own, seed, size, aside),
            file_of=lambda _, index: read_file(content, index, examples.max_pixels),
            labels_of=lambda found: np.where(found < 0, -1, labels[found]).astype(np.int32),
        )


def _streamed_rows(examples: Examples, **order: Any) -> Iterator[_Rows]:
    """The batches of a streamed split. The arguments are those of `pipeline.streamed_files`."""
    assert isinstance(examples.content, Streamed)
    with needs_tensorflow(f'the streamed split {examples.name}', examples.content.cure):
        from simclr_jax.data.pipeline import streamed_files
    for index, labels, files in streamed_files(examples, **order):
        yield _given_rows(index, labels, files)


def _given_rows(index: np.ndarray, labels: np.ndarray, files: np.ndarray) -> _Rows:
    """A batch whose files are in memory: indices int64 [R], labels int32 [R] and bytes [R]."""
    return _Rows(
        candidates=index[:, np.newaxis],
        file_of=lambda row, _: files[row],
        labels_of=lambda found: np.where(found < 0, -1, labels).astype(np.int32),
    )


def _decoded(
    rows: Iterator[_Rows], pool: ThreadPoolExecutor, side: int, max_pixels: int, ahead: int
) -> Iterator[Batch]:
    """Batches with the decoded images. Rows without a readable candidate have the index -1."""
    waiting = collections.deque[Callable[[], Batch]]()
    for batch in rows:
        waiting.append(_begin(pool, batch, side, max_pixels))
        if len(waiting) > ahead:
            yield waiting.popleft()()


def _begin(pool: ThreadPoolExecutor, rows: _Rows, side: int, max_pixels: int) -> Callable[[], Batch]:
    """Begins to decode a batch. Returns a function that waits for it."""
    count = len(rows.candidates)
    batch = {
        # The part of a canvas that no image fills is never touched, and so takes neither time nor memory.
        'images': np.zeros([count, side, side, 3], np.uint8),
        'sizes': np.ones([count, 4], np.float32),
        'index': np.full([count], -1, np.int32),
        'mask': np.ones([count], np.float32),
        'wanted': rows.candidates[:, 0].astype(np.int32),
    }
    decode = functools.partial(_decode_rows, rows, batch, max_pixels)
    tasks = [pool.submit(decode, range(start, min(start + _BLOCK, count))) for start in range(0, count, _BLOCK)]
    return functools.partial(_finish, tasks, rows, batch)


def _finish(tasks: list[Future[None]], rows: _Rows, batch: Batch) -> Batch:
    for task in tasks:
        task.result()
    return batch | {'label': rows.labels_of(batch['index'])}


def _decode_rows(rows: _Rows, batch: Batch, max_pixels: int, places: range) -> None:
    """Decodes the first readable candidate of some rows into the batch."""
    side = batch['images'].shape[1]
    for row in places:
        for index in rows.candidates[row].tolist():
            try:
                image = images.decode_within(rows.file_of(row, index), side, max_pixels)
            except images.ImageError:
                continue
            height, width = image.pixels.shape[:2]
            batch['images'][row, :height, :width] = image.pixels
            batch['sizes'][row], batch['index'][row] = (*image.extent, *image.size), index
            break
