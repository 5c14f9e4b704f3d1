"""Lanes of a streamed split: what is read, by whom, in which order."""

import itertools

import numpy as np
import pytest

tf = pytest.importorskip('tensorflow', reason='the host pipeline needs TensorFlow')

from simclr_jax.data import streams  # noqa: E402
from simclr_jax.data.spec import Share, Streamed  # noqa: E402

# 16 shards of 6 records on average, whose edges are no edges of lanes.
SIZES = [5, 7, 6, 6, 7, 5, 8, 4, 6, 6, 5, 7, 9, 3, 6, 6]
RECORDS, BATCH = sum(SIZES), 8
FIRSTS = np.cumsum([0, *SIZES])


def split(lanes=4, sizes=SIZES, opened=None):
    """A split whose records are their own indices; `opened` collects the shards that are read."""
    firsts = np.cumsum([0, *sizes]).astype(np.int64)

    def read(shard):
        if opened is not None:
            shard = tf.numpy_function(lambda number: opened.add(int(number)) or number, [shard], tf.int64)
        rows = tf.data.Dataset.range(tf.gather(firsts, shard), tf.gather(firsts, shard + 1))
        return rows.map(lambda index: (index, index))

    return Streamed(sizes, read, lambda record: (record, record), lanes, shuffle_buffer=16)


def rows_of(content, number, share=Share(), **changes):
    """[(epoch, index)] of so many rows."""
    options = {'batch_size': BATCH, 'seed': 1, 'start_step': 0, 'parallel_calls': 2} | changes
    rows = streams.training_rows(content, share=share, **options)
    return [(int(epoch), int(index)) for epoch, index, _ in rows.take(number).as_numpy_iterator()]


def test_in_the_order_in_which_they_are_stored():
    rows = streams.stored_rows(split())
    assert [int(index) for index, _ in rows.as_numpy_iterator()] == list(range(RECORDS))


@pytest.mark.parametrize('lanes', [1, 2, 4])
def test_every_epoch_has_every_image_once(lanes):
    """Four lanes of 24 records, two rows of each in a batch: an epoch of all is twelve steps."""
    epochs = np.array(rows_of(split(lanes), 3 * RECORDS)).reshape(3, RECORDS, 2)
    for number, rows in enumerate(epochs):
        assert (rows[:, 0] == number).all()
        np.testing.assert_array_equal(np.sort(rows[:, 1]), np.arange(RECORDS))
    assert (epochs[0, :, 1] != epochs[1, :, 1]).any()


def test_rows_of_a_batch_are_from_all_lanes():
    rows = np.array(rows_of(split(), 5 * BATCH))[:, 1].reshape(5, BATCH)
    np.testing.assert_array_equal(rows // 24, np.tile(np.repeat(np.arange(4), 2), (5, 1)))


@pytest.mark.parametrize('processes', [2, 4, 8])
def test_the_order_does_not_depend_on_the_number_of_processes(processes):
    """Eight share four lanes."""
    steps, own = 30, BATCH // processes
    expected = rows_of(split(), steps * BATCH)
    parts = [
        np.array(rows_of(split(), steps * own, Share(number, processes))).reshape(steps, own, 2)
        for number in range(processes)
    ]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1).reshape(-1, 2), expected)


@pytest.mark.parametrize('step', [1, 11, 12, 31])
def test_starting_at_a_step_is_going_on(step):
    undisturbed = rows_of(split(), 40 * BATCH)
    assert rows_of(split(), 9 * BATCH, start_step=step) == undisturbed[step * BATCH : (step + 9) * BATCH]


def test_the_seed_decides():
    assert rows_of(split(), RECORDS) != rows_of(split(), RECORDS, seed=2)


def test_a_process_reads_its_own_shards_only():
    opened = set()
    rows = rows_of(split(opened=opened), 2 * RECORDS // 4, Share(2, 4))
    indices = {index for _, index in rows}
    assert indices == set(range(48, 72))
    holding = {int(np.searchsorted(FIRSTS, index, side='right')) - 1 for index in indices}
    assert opened == holding
    assert len(opened) < len(SIZES) / 2


@pytest.mark.parametrize(
    'sizes, lanes, batch_size, expected',
    [
        # An edge a little off is no reason to cut a shard.
        ([1251, 1252] * 512, 64, 4096, [16 * 1251 + 8] * 64),
        ([1000, 1001, 1000, 999] * 2, 2, 6, [4000, 4000]),
        ([1001, 1001, 1000, 1000, 1000, 999, 999, 1000], 2, 8, [4002, 3998]),
        # The batch must divide, and a lane has four shards.
        ([10] * 16, 4, 6, [54, 53, 53]),
        ([10] * 7, 4, 8, [70]),
        ([10] * 16, 1, 8, [160]),
    ],
)
def test_lanes_are_of_nearly_one_size(sizes, lanes, batch_size, expected):
    divided = streams._divide(split(lanes, sizes), batch_size)
    assert divided.count == len(expected)
    assert sorted(divided.sizes.tolist()) == pytest.approx(sorted(expected), abs=1)
    taken = [(shard, place) for shard, skip, take in divided.pieces.tolist() for place in range(skip, skip + take)]
    assert taken == [(shard, place) for shard, size in enumerate(sizes) for place in range(size)]
    for lane, (start, end) in enumerate(itertools.pairwise(divided.starts)):
        assert divided.pieces[start:end, 2].sum() == divided.sizes[lane]
