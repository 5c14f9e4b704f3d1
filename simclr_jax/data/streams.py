"""Splits too large for the memory: read in lanes. A process opens only the lanes of its own rows.

A lane is a part of the split, a run of consecutive shards. Each row of the global batch belongs to one lane, the same
in every step. So the order of the images follows from (seed, step) and the lanes alone, not from the number of
processes. Within a lane every image comes once per epoch of the lane. The order of the shards changes with each epoch,
and a buffer shuffles the records.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from simclr_jax.data.spec import Share, Streamed

# TensorFlow's type stubs lack it.
index_shuffle = tf.random.experimental.index_shuffle  # pyright: ignore[reportAttributeAccessIssue]

# Smallest number of shards per lane. A lane that begins inside of a shard must read over the records before.
_SHARDS_OF_A_LANE = 4
# A lane that would begin this close to a shard's edge, as a share of the lane, begins at the edge.
_SNAP = 0.005


@dataclasses.dataclass(frozen=True)
class _Lanes:
    """L lanes, made of P pieces of shards. The pieces of all lanes lie in one row.

    Attributes:
        starts: First piece of each lane, int64 [L + 1].
        sizes: Records of each lane, int64 [L].
        pieces: Shard, records to skip and records to take of each piece, int64 [P, 3].
    """

    starts: np.ndarray
    sizes: np.ndarray
    pieces: np.ndarray

    @property
    def count(self) -> int:
        """Number of lanes L."""
        return len(self.sizes)


def stored_rows(content: Streamed, start: int = 0) -> tf.data.Dataset:
    """The rows (index, record) of a split in stored order, from the row `start` on."""
    edges = np.concatenate([[0], np.cumsum(content.shard_sizes)])
    first = int(np.searchsorted(edges, start, side='right')) - 1
    shards = tf.data.Dataset.range(first, len(content.shard_sizes))
    return shards.flat_map(content.read).skip(start - int(edges[first]))


def training_rows(
    content: Streamed, *, batch_size: int, seed: int, start_step: int, share: Share, parallel_calls: int
) -> tf.data.Dataset:
    """This process's endless rows (epoch, index, record), starting at a step. Earlier rows of its epoch are skipped.

    Args:
        content: Split to read.
        batch_size: Images per global batch B.
        seed: Seed of the order.
        start_step: Step of the first rows.
        share: Rows of this process.
        parallel_calls: Largest number of lanes that are read at the same time. -1 (tf.data.AUTOTUNE) means tuned.
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
    # The first and the last lane may be shared with the neighbouring processes.
    return places(rows, opened * block, range(own.start - first * block, own.stop - first * block))


def places(rows: tf.data.Dataset, period: int, wanted: range) -> tf.data.Dataset:
    """Keeps the rows at the wanted places of every `period` rows."""
    if len(wanted) == period:
        return rows

    def is_wanted(n, _):
        return (n % period - wanted.start) // len(wanted) == 0

    # TensorFlow's type stubs know only predicates of a single component.
    rows = rows.enumerate().filter(is_wanted)  # pyright: ignore[reportArgumentType]
    return rows.map(lambda _, row: row)


def _lane_rows(content: Streamed, lanes: _Lanes, lane: tf.Tensor, seed: int, start: int) -> tf.data.Dataset:
    """The endless rows (epoch, index, record) of a lane, starting at its row `start`."""
    first_piece = tf.gather(lanes.starts, lane)
    num_pieces = tf.gather(lanes.starts, lane + 1) - first_piece
    size = tf.gather(lanes.sizes, lane)
    first_epoch, skipped = start // size, start % size
    buffer = -(-content.shuffle_buffer // lanes.count)

    def read_piece(number):
        # tf.unstack would not do: TensorFlow's optimiser crashes where a count is the second output of an operation.
        piece = tf.gather(lanes.pieces, number)
        return content.read(piece[0]).skip(piece[1]).take(piece[2])

    def epoch_rows(epoch):
        turn = epoch * lanes.count + lane
        key = tf.stack([tf.constant(seed, tf.int64), turn])
        pieces = tf.data.Dataset.range(num_pieces).map(lambda n: first_piece + index_shuffle(n, key, num_pieces - 1))
        rows = pieces.flat_map(read_piece)
        rows = rows.shuffle(buffer, key[0] * 1_000_003 + turn, reshuffle_each_iteration=False)
        rows = rows.skip(tf.where(epoch == first_epoch, skipped, 0))
        return rows.map(lambda index, record: (epoch, index, record))

    return tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max).flat_map(epoch_rows)


def _divide(content: Streamed, batch_size: int) -> _Lanes:
    """Divides a split into lanes of nearly equal size, as many as the split and the batch allow."""
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
    """Pieces (shard, skip, take) of the records [begin, end), int64 [P, 3]."""
    starts, ends = np.maximum(edges[:-1], begin), np.minimum(edges[1:], end)
    (shards,) = np.nonzero(starts < ends)
    return np.stack([shards, (starts - edges[:-1])[shards], (ends - starts)[shards]], axis=1)


def packed_stream(
    shards: Sequence[str],
    counts: np.ndarray,
    *,
    lanes: int,
    shuffle_buffer: int,
    ids: Sequence[str],
    digest: str,
) -> Streamed:
    """The content of a split that `simclr pack` wrote.

    Args:
        shards: Paths of the shards.
        counts: Records of each shard, int [S].
        lanes, shuffle_buffer, ids, digest: See `spec.Streamed`.
    """
    firsts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    paths = np.array(shards)

    def read(shard):
        return tf.data.TFRecordDataset(tf.gather(paths, shard)).enumerate(tf.gather(firsts, shard))

    def parse(record):
        features = {'image': tf.io.FixedLenFeature([], tf.string), 'label': tf.io.FixedLenFeature([], tf.int64)}
        example = tf.io.parse_single_example(record, features)
        return example['image'], tf.cast(example['label'], tf.int32)

    cure = 'copy the packed images to a local disk'
    return Streamed(counts.tolist(), read, parse, lanes, shuffle_buffer, ids, digest, cure)
