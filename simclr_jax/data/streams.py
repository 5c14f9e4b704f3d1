"""Splits too large to hold: read in lanes, of which a process opens only those that its own rows come from.

A lane is a part of the split, a run of its shards. Each row of the global batch has its lane, the same one in every
step, so that what stands where follows from (seed, step) and the lanes alone, whatever the number of processes. Within
a lane every image comes once in each of its epochs: the shards' order changes, and a buffer shuffles the records.
"""

import dataclasses
import itertools

import numpy as np
import tensorflow as tf

from simclr_jax.data.spec import Share, Streamed

# A lane has so many shards at least: one that begins inside of a shard reads over what comes before.
_SHARDS_OF_A_LANE = 4
# A lane that would begin so close to a shard's edge, as a part of the lane, begins there.
_SNAP = 0.005


@dataclasses.dataclass(frozen=True)
class _Lanes:
    """L lanes of pieces of shards, all pieces in one row.

    Attributes:
        starts: int64 [L + 1], where each lane's pieces begin.
        sizes: int64 [L], records of each lane.
        pieces: int64 [P, 3], of each piece the shard, the records of it to skip and to take.
    """

    starts: np.ndarray
    sizes: np.ndarray
    pieces: np.ndarray

    @property
    def count(self) -> int:
        """L."""
        return len(self.sizes)


def stored_rows(content: Streamed) -> tf.data.Dataset:
    """All (index, record) in the order in which they are stored."""
    return tf.data.Dataset.range(len(content.shard_sizes)).flat_map(content.read)


def training_rows(
    content: Streamed, *, batch_size: int, seed: int, start_step: int, share: Share, parallel_calls: int
) -> tf.data.Dataset:
    """This process's endless rows (epoch, index, record) from a step on; what comes before is read over.

    Args:
        content: the split.
        batch_size: B, images of the global batch.
        seed: of the order.
        start_step: the first rows are those of this step.
        share: which rows are this process's.
        parallel_calls: lanes that are read at the same time at most; -1 (tf.data.AUTOTUNE): tuned.
    """
    lanes = _divide(content, batch_size)
    block = batch_size // lanes.count
    own = share.rows(batch_size)
    first, last = own.start // block, (own.stop - 1) // block

    def open_lane(lane):
        return _lane_rows(content, lanes, lane, seed, start_step * block)

    opened = last + 1 - first
    rows = tf.data.Dataset.range(first, last + 1).interleave(
        open_lane, opened, block, num_parallel_calls=min(parallel_calls, opened), deterministic=True
    )
    # The first and the last lane may be shared with the processes beside.
    return places(rows, opened * block, range(own.start - first * block, own.stop - first * block))


def places(rows: tf.data.Dataset, period: int, wanted: range) -> tf.data.Dataset:
    """Of each `period` rows, one after the other, those whose places are wanted."""
    if len(wanted) == period:
        return rows
    rows = rows.enumerate().filter(lambda n, _: (n % period - wanted.start) // len(wanted) == 0)
    return rows.map(lambda _, row: row)


def _lane_rows(content: Streamed, lanes: _Lanes, lane: tf.Tensor, seed: int, start: int) -> tf.data.Dataset:
    """The endless (epoch, index, record) of a lane, from its row `start` on."""
    first_piece = tf.gather(lanes.starts, lane)
    num_pieces = tf.gather(lanes.starts, lane + 1) - first_piece
    size = tf.gather(lanes.sizes, lane)
    first_epoch, skipped = start // size, start % size
    buffer = -(-content.shuffle_buffer // lanes.count)

    def read_piece(number):
        # Not by tf.unstack: TensorFlow's optimiser crashes where a count is the second output of an operation.
        piece = tf.gather(lanes.pieces, number)
        return content.read(piece[0]).skip(piece[1]).take(piece[2])

    def epoch_rows(epoch):
        turn = epoch * lanes.count + lane
        key = tf.stack([tf.constant(seed, tf.int64), turn])
        pieces = tf.data.Dataset.range(num_pieces).map(
            lambda n: first_piece + tf.random.experimental.index_shuffle(n, key, num_pieces - 1)
        )
        rows = pieces.flat_map(read_piece)
        rows = rows.shuffle(buffer, key[0] * 1_000_003 + turn, reshuffle_each_iteration=False)
        rows = rows.skip(tf.where(epoch == first_epoch, skipped, 0))
        return rows.map(lambda index, record: (epoch, index, record))

    return tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max).flat_map(epoch_rows)


def _divide(content: Streamed, batch_size: int) -> _Lanes:
    """As many lanes of nearly one size as the split and the batch allow."""
    sizes = np.asarray(content.shard_sizes, np.int64)
    edges = np.concatenate([[0], np.cumsum(sizes)])
    most = min(content.lanes, max(1, len(sizes) // _SHARDS_OF_A_LANE))
    count = max(number for number in range(1, most + 1) if batch_size % number == 0)
    begins = np.round(np.linspace(0, edges[-1], count + 1)).astype(np.int64)
    nearest = edges[np.abs(edges[:, np.newaxis] - begins).argmin(axis=0)]
    begins = np.where(np.abs(nearest - begins) <= _SNAP * edges[-1] / count, nearest, begins)
    pieces = [_pieces(edges, *bounds) for bounds in itertools.pairwise(begins)]
    return _Lanes(
        starts=np.cumsum([0, *map(len, pieces)], dtype=np.int64),
        sizes=np.diff(begins),
        pieces=np.concatenate(pieces),
    )


def _pieces(edges: np.ndarray, begin: int, end: int) -> np.ndarray:
    """int64 [P, 3] of the records [begin, end): (shard, skip, take)."""
    starts, ends = np.maximum(edges[:-1], begin), np.minimum(edges[1:], end)
    (shards,) = np.nonzero(starts < ends)
    return np.stack([shards, (starts - edges[:-1])[shards], (ends - starts)[shards]], axis=1)
