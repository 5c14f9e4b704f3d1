"""The order, the pixels and the contract of the batches that tf.data makes on the host."""

import dataclasses
import functools
import io
import itertools
import os

import numpy as np
import psutil
import pytest
from PIL import Image

tf = pytest.importorskip('tensorflow', reason='the host pipeline needs TensorFlow')

from simclr_jax.augment.policy import make_policy  # noqa: E402
from simclr_jax.data import folder, images, pipeline  # noqa: E402
from simclr_jax.data.pipeline import TrainBatches  # noqa: E402
from simclr_jax.data.spec import DataError, Decoded, Encoded, Examples, Files, Reading, Share  # noqa: E402
from support import image_files  # noqa: E402
from support.splits import packed, streamed  # noqa: E402

RANDOM = np.random.default_rng(0)
# 18 images: more than the 16 files that are read side by side, and no multiple of the batch.
SIZE, BATCH = 18, 4
IMAGES = RANDOM.integers(0, 256, size=(SIZE, 10, 12, 3), dtype=np.uint8)
LABELS = np.arange(SIZE, dtype=np.int32) % 3
CLASS_NAMES = ('a', 'b', 'c')
POLICY = make_policy(8, views=('crop flip', 'crop jitter'))


def encode(image, kind='PNG', **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


FILES = [encode(image) for image in IMAGES]
KINDS = ['decoded', 'encoded', 'files', 'packed', 'streamed']


def save_folder(path, files):
    """Writes {name: bytes} and opens the folder, labelled as the other splits are."""
    for name, content in files.items():
        (path / name).write_bytes(content)
    unlabelled = folder.load_folder(str(path), '')
    return dataclasses.replace(unlabelled, labels=LABELS[: len(files)], class_names=CLASS_NAMES)


@pytest.fixture(scope='module')
def examples(tmp_path_factory):
    """The same images as each kind of content."""
    path = tmp_path_factory.mktemp('images')
    return {
        'decoded': Examples('decoded', SIZE, Decoded(IMAGES), LABELS, CLASS_NAMES),
        'encoded': Examples('encoded', SIZE, Encoded(FILES), LABELS, CLASS_NAMES),
        'files': save_folder(path, {f'{n:02}.png': file for n, file in enumerate(FILES)}),
        'packed': Examples('packed', SIZE, packed(path, FILES), LABELS, CLASS_NAMES),
        'streamed': Examples('streamed', SIZE, streamed(FILES, LABELS), None, CLASS_NAMES),
    }


@pytest.fixture(scope='module')
def opened(examples):
    """Two epochs of each kind of content, as one process reads them: {kind: batches}."""
    steps = 2 * SIZE // BATCH

    @functools.cache
    def read(kind):
        return take(TrainBatches(examples[kind], **options()), steps)

    return read


def options(**changes):
    return {'policy': POLICY, 'batch_size': BATCH, 'seed': 1} | changes


def take(batches, number):
    return list(itertools.islice(batches, number))


def column(batches, name):
    return np.concatenate([batch[name] for batch in batches])


def assert_same_bits(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def assert_contract(batch, rows, views, size):
    """What data/spec.py says of a batch."""
    assert {name: array.dtype for name, array in batch.items()} == {
        'views': np.float32,
        'label': np.int32,
        'mask': np.float32,
        'index': np.int32,
    }
    assert batch['views'].shape == (rows, views, size, size, 3)
    assert batch['label'].shape == batch['mask'].shape == batch['index'].shape == (rows,)
    assert batch['views'].min() >= 0
    assert batch['views'].max() <= 1


# Training.


@pytest.mark.parametrize('kind', KINDS)
def test_every_epoch_has_every_image_once(opened, kind):
    """18 images in batches of 4: the fifth batch belongs to two epochs."""
    batches = opened(kind)
    for batch in batches:
        assert_contract(batch, rows=BATCH, views=2, size=8)
        assert batch['mask'].all()
    index = column(batches, 'index').reshape(2, SIZE)
    np.testing.assert_array_equal(np.sort(index), [np.arange(SIZE)] * 2)
    assert (index[0] != index[1]).any()
    assert (index[0] != np.arange(SIZE)).any()
    np.testing.assert_array_equal(column(batches, 'label'), LABELS[index.ravel()])


def test_pixels_and_order_do_not_depend_on_where_the_images_are(opened):
    """A streamed split has its own order, and the same pixels."""
    for kind in ('encoded', 'files', 'packed'):
        assert_same_bits(opened(kind), opened('decoded'))
    by_index = {kind: pixels_by_index(opened(kind)) for kind in ('decoded', 'streamed')}
    np.testing.assert_array_equal(by_index['streamed'], by_index['decoded'])


def pixels_by_index(batches):
    """Views [2, SIZE, V, H, W, 3] of two epochs in the order of the images."""
    order = np.argsort(column(batches, 'index').reshape(2, SIZE))
    views = column(batches, 'views')
    return np.stack([views[:SIZE][order[0]], views[SIZE:][order[1]]])


def test_pixels_follow_from_seed_epoch_and_image_alone(examples, opened):
    """Not from the batch: the same images in batches of 9 get the same views."""
    batches = opened('decoded')
    pixels = pixels_by_index(batches)
    larger = take(TrainBatches(examples['decoded'], **options(batch_size=9)), 4)
    np.testing.assert_array_equal(pixels_by_index(larger), pixels)
    # Each epoch and each view draws anew.
    assert (pixels[0] != pixels[1]).any(axis=(2, 3, 4)).all()
    assert (pixels[:, :, 0] != pixels[:, :, 1]).any(axis=(2, 3, 4)).all()


@pytest.mark.parametrize('kind', ['decoded', 'streamed'])
def test_seed_decides_order_and_pixels(examples, opened, kind):
    batches = opened(kind)
    other = take(TrainBatches(examples[kind], **options(seed=2)), len(batches))
    assert (column(batches, 'index')[:SIZE] != column(other, 'index')[:SIZE]).any()
    assert (pixels_by_index(batches) != pixels_by_index(other)).any(axis=(2, 3, 4, 5)).all()


@pytest.mark.parametrize('kind', KINDS)
def test_resuming_at_a_step_gives_the_same_bits(examples, opened, kind):
    """Step 6 is in the second epoch."""
    assert_same_bits(take(TrainBatches(examples[kind], **options(start_step=6)), 3), opened(kind)[6:])


@pytest.mark.parametrize('kind', ['decoded', 'streamed'])
def test_shares_put_together_are_the_global_batch(examples, opened, kind):
    processes = [TrainBatches(examples[kind], **options(start_step=2, share=Share(n, 4))) for n in range(4)]
    for expected in opened(kind)[2:6]:
        rows = [next(process) for process in processes]
        assert all(len(row['index']) == 1 for row in rows)
        assert_same_bits([{name: column(rows, name) for name in expected}], [expected])


@pytest.mark.parametrize('reading', [Reading(threads=1, parallel_calls=1, prefetch=1), Reading(3, 20, 0)])
@pytest.mark.parametrize('kind', KINDS)
def test_threads_and_buffers_change_nothing(examples, opened, kind, reading):
    batches = take(TrainBatches(examples[kind], **options(reading=reading)), 4)
    assert_same_bits(batches, opened(kind)[:4])


def test_threads_are_the_pipelines_own():
    examples = Examples('decoded', SIZE, Decoded(IMAGES), LABELS, CLASS_NAMES)
    shared = TrainBatches(examples, **options())
    next(shared)
    before = psutil.Process().num_threads()
    own = TrainBatches(examples, **options(reading=Reading(threads=40)))
    next(own)
    assert psutil.Process().num_threads() >= before + 40


def test_bytes_are_the_rounded_views(examples, opened):
    as_bytes = take(TrainBatches(examples['decoded'], **options(as_bytes=True)), 4)
    assert {batch['views'].dtype for batch in as_bytes} == {np.dtype(np.uint8)}
    views = np.rint(255 * column(opened('decoded')[:4], 'views'))
    np.testing.assert_array_equal(column(as_bytes, 'views'), views)


@pytest.mark.parametrize('size', [1, 2, 5])
def test_the_smallest_sets_are_permuted_too(size):
    """Batches as large as the set: each one is an epoch."""
    examples = Examples('few', size, Decoded(IMAGES[:size]), LABELS[:size], CLASS_NAMES)
    policy = make_policy(8, views=('flip', 'flip'))
    for batch in take(TrainBatches(examples, policy, batch_size=size, seed=0), 4):
        np.testing.assert_array_equal(np.sort(batch['index']), np.arange(size))


def test_there_may_be_three_views_and_no_labels():
    square = IMAGES[:, :, :10]
    examples = Examples('plain', SIZE, Decoded(square), np.full(SIZE, -1, np.int32), ())
    policy = make_policy(10, shared='flip', views=('', 'drop', 'crop'), parameters={'drop': {'p': 1.0}})
    batch = next(TrainBatches(examples, policy, batch_size=6, seed=0))
    assert_contract(batch, rows=6, views=3, size=10)
    np.testing.assert_array_equal(batch['label'], -1)
    # The grey view is that of the image beside it: the views of one image stand together.
    luma = batch['views'][:, 0] @ np.array([0.2989, 0.587, 0.114], np.float32)
    np.testing.assert_allclose(batch['views'][:, 1, ..., 0], luma, rtol=0, atol=1e-6)  # rounding


# Kinds of files.


@pytest.fixture(scope='module')
def decode():
    return tf.function(pipeline.decode, input_signature=[tf.TensorSpec([], tf.string)])


@pytest.mark.parametrize('name', image_files.READABLE)
def test_every_kind_of_file_has_pillows_pixels(decode, name):
    """JPEG is decoded by other arithmetic: up to four units beside Pillow's."""
    found, expected = decode(image_files.READABLE[name]).numpy(), images.decode(image_files.READABLE[name])
    assert (found.dtype, found.shape) == (np.uint8, expected.shape)
    np.testing.assert_allclose(found.astype(int), expected, rtol=0, atol=4 if name in image_files.JPEGS else 0)


@pytest.mark.parametrize('name', image_files.UNREADABLE)
def test_damaged_files_are_no_images(decode, name):
    """A file that ends too early is not read in part."""
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(image_files.UNREADABLE[name])


@pytest.mark.parametrize('name', image_files.FORMATS)
def test_an_image_with_too_many_pixels_is_refused_by_its_header(name):
    """120 pixels. The rest of the bomb's file is never unpacked."""
    file = image_files.FORMATS[name]
    for most, is_read in ((119, False), (120, True)):
        decode = tf.function(lambda file, most=most: pipeline.decode(file, most))
        if is_read:
            assert decode(tf.constant(file)).shape == (10, 12, 3)
        else:
            with pytest.raises(tf.errors.InvalidArgumentError):
                decode(tf.constant(file))


@pytest.mark.parametrize('height, width', [(2**31, 2**31), (2**32 - 1, 1), (1, 2**32 - 1), (13_000, 13_000)])
def test_a_png_may_say_any_size(decode, height, width):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(image_files.png_of_size(height, width))


# Unreadable files.

DAMAGED = {3: b'text', 8: FILES[8][:40], 15: b''}


@pytest.fixture(scope='module')
def damaged_folder(tmp_path_factory):
    """18 files, three of which are no images."""
    files = {f'{n:02}.jpg': DAMAGED.get(n, file) for n, file in enumerate(FILES)}
    return save_folder(tmp_path_factory.mktemp('damaged'), files)


@pytest.fixture(scope='module')
def damaged_epoch(damaged_folder):
    """One epoch, a sixth of which may be unreadable, and what was found then."""
    batches = TrainBatches(damaged_folder, **options(batch_size=6, max_unreadable=1 / 6))
    return take(batches, 3), batches.unreadable


def test_unreadable_files_are_named_and_replaced(damaged_folder, damaged_epoch, opened):
    batches, unreadable = damaged_epoch
    assert unreadable == [damaged_folder.content.paths[n] for n in DAMAGED]
    index, wanted = column(batches, 'index'), column(opened('decoded'), 'index')[:SIZE]
    is_damaged = np.isin(wanted, list(DAMAGED))
    np.testing.assert_array_equal(index[~is_damaged], wanted[~is_damaged])
    assert not set(index) & set(DAMAGED)
    for batch in batches:
        assert_contract(batch, rows=6, views=2, size=8)
        assert batch['mask'].all()
        assert len(set(batch['index'])) == 6


def test_the_substitutes_are_the_same_after_a_resume(damaged_folder, damaged_epoch):
    resumed = TrainBatches(damaged_folder, **options(batch_size=6, max_unreadable=1 / 6, start_step=1))
    assert_same_bits(take(resumed, 2), damaged_epoch[0][1:])


def test_more_unreadable_files_than_allowed_stop_the_run(damaged_folder):
    batches = TrainBatches(damaged_folder, **options(batch_size=6, max_unreadable=0.15))
    with pytest.raises(DataError) as error:
        take(batches, 3)
    message = str(error.value)
    assert '3 of 18 files' in message
    assert 'data.max_unreadable=0.15' in message
    assert 'remove them, or raise it' in message
    assert all(damaged_folder.content.paths[n] in message for n in DAMAGED)


def test_a_folder_without_a_single_image_stops_the_run(tmp_path):
    examples = save_folder(tmp_path, {f'{n}.jpg': b'text' for n in range(5)})
    with pytest.raises(DataError, match=r'of 5 files of .* are not readable images'):
        next(TrainBatches(examples, **options(max_unreadable=1.0)))


WITH_DAMAGE = [DAMAGED.get(n, file) for n, file in enumerate(FILES)]


def test_unreadable_images_in_arrays_are_treated_as_files_are(damaged_epoch):
    """Files and arrays with the same damage are the same batches."""
    examples = Examples('encoded', SIZE, Encoded(WITH_DAMAGE), LABELS, CLASS_NAMES)
    batches = TrainBatches(examples, **options(batch_size=6, max_unreadable=1 / 6))
    assert_same_bits(take(batches, 3), damaged_epoch[0])
    assert sorted(batches.unreadable) == ['encoded/15', 'encoded/3', 'encoded/8']


def test_unreadable_images_of_a_stream_are_named_and_replaced():
    """Another row of the batch takes the place, since a lane cannot go back."""
    examples = Examples('streamed', SIZE, streamed(WITH_DAMAGE, LABELS), None, CLASS_NAMES)
    batches = TrainBatches(examples, **options(batch_size=6, max_unreadable=1 / 6))
    epoch = take(batches, 3)
    assert sorted(batches.unreadable) == ['streamed/15', 'streamed/3', 'streamed/8']
    for batch in epoch:
        assert_contract(batch, rows=6, views=2, size=8)
        assert batch['mask'].all()
        np.testing.assert_array_equal(batch['label'], LABELS[batch['index']])
    assert set(column(epoch, 'index')) == set(range(SIZE)) - set(DAMAGED)


def test_names_of_files_need_not_be_text(tmp_path):
    """A latin-1 archive's names are no UTF-8."""
    name = os.fsdecode(b'caf\xe9.png')
    try:
        (tmp_path / name).write_bytes(FILES[0])
    except OSError:
        pytest.skip('this file system takes UTF-8 names only')
    examples = Examples('one', 1, Files([str(tmp_path / name)]), np.zeros(1, np.int32), ('a',))
    batch = next(TrainBatches(examples, **options(batch_size=1)))
    assert batch['index'].tolist() == [0]
