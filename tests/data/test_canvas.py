"""Images of several sizes on canvases: their pixels, their order, and what is not readable."""

import dataclasses
import gc
import io
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from simclr_jax import sharding
from simclr_jax.augment.policy import make_policy
from simclr_jax.cli.main import main
from simclr_jax.data import images
from simclr_jax.data.canvas import CanvasBatches
from simclr_jax.data.resident import images_of_step
from simclr_jax.data.spec import DataError, Encoded, Examples, Files, Reading, Share
from support.runs import DIGITS_HERE, assert_same_bits, mesh_of, model_of
from support.splits import streamed

SIZE, BATCH, SIDE = 18, 4, 16
RANDOM = np.random.default_rng(0)
# Of five sizes, two of them larger than the canvas.
SIZES = [(10, 12), (16, 16), (7, 3), (40, 20), (15, 17)]
LABELS = np.arange(SIZE, dtype=np.int32) % 3


def encode(number):
    """A JPEG or PNG of noise in blocks of three pixels."""
    height, width = SIZES[number % 5]
    image = RANDOM.integers(0, 256, (-(-height // 3), -(-width // 3), 3)).astype(np.uint8)
    image = image.repeat(3, 0).repeat(3, 1)[:height, :width]
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'PNG' if number % 2 else 'JPEG')
    return file.getvalue()


FILES = [encode(number) for number in range(SIZE)]
ENCODED = Examples('encoded', SIZE, Encoded(FILES), LABELS, ('a', 'b', 'c'))
DAMAGED = (3, 7, 16)


def batches_of(examples=ENCODED, **options):
    return CanvasBatches(examples, **{'side': SIDE, 'batch_size': BATCH, 'seed': 3, **options})


def take(batches, count):
    return [next(batches) for _ in range(count)]


def column(batches, name):
    return np.concatenate([batch[name] for batch in batches])


def assert_same(found, expected):
    for batch, other in zip(found, expected, strict=True):
        assert batch.keys() == other.keys()
        for name, rows in other.items():
            assert batch[name].dtype == rows.dtype, name
            np.testing.assert_array_equal(batch[name], rows, name)


@pytest.fixture(scope='module')
def batches():
    """Two epochs."""
    return take(batches_of(), 9)


def test_rows_are_what_the_batch_contract_says(batches):
    for batch in batches:
        described = {name: (rows.shape, rows.dtype) for name, rows in batch.items()}
        assert described == {
            'images': ((BATCH, SIDE, SIDE, 3), np.uint8),
            'sizes': ((BATCH, 4), np.float32),
            'label': ((BATCH,), np.int32),
            'index': ((BATCH,), np.int32),
            'mask': ((BATCH,), np.float32),
        }
        np.testing.assert_array_equal(batch['label'], LABELS[batch['index']])
        assert batch['mask'].all()


def test_a_canvas_holds_the_image_that_its_index_names(batches):
    for batch in batches:
        for canvas, sizes, index in zip(batch['images'], batch['sizes'], batch['index'], strict=True):
            image = images.decode(FILES[index])
            assert tuple(sizes[2:]) == image.shape[:2] == SIZES[index % 5]
            if max(image.shape) <= SIDE:
                assert tuple(sizes[:2]) == image.shape[:2]
                np.testing.assert_array_equal(canvas[: image.shape[0], : image.shape[1]], image)
            height, width = np.ceil(sizes[:2]).astype(int)
            assert not canvas[height:].any()
            assert not canvas[:, width:].any()


def test_larger_images_keep_their_aspect_and_fill_the_canvas(batches):
    """A JPEG as far as eighths can: 40 x 20 becomes 15 x 8 (three eighths), a PNG 16 x 8."""
    stored = dict(zip(column(batches, 'index').tolist(), column(batches, 'sizes')[:, :2].tolist(), strict=True))
    assert {number: stored[number] for number in (3, 8, 13)} == {3: [16, 8], 8: [15, 7.5], 13: [16, 8]}
    # 15 x 17: seven eighths fill a part of the last row and column. A PNG becomes 14.1 x 16, rounded.
    assert {number: stored[number] for number in (4, 14)} == {4: [13.125, 14.875], 14: [13.125, 14.875]}
    assert stored[9] == [14, 16]


def test_the_order_is_that_of_images_in_memory(batches):
    for step, batch in enumerate(batches):
        np.testing.assert_array_equal(batch['index'], images_of_step(step, BATCH, 3, SIZE))


def test_neither_processes_nor_starts_nor_threads_change_a_batch(batches):
    shares = [batches_of(share=Share(number, 4)) for number in range(4)]
    parts = [take(share, 3) for share in shares]
    for step in range(3):
        whole = {name: column([part[step] for part in parts], name) for name in batches[0]}
        assert_same([whole], [batches[step]])
    assert_same(take(batches_of(start_step=5, reading=Reading(threads=7, prefetch=5)), 3), batches[5:8])


def test_folders_are_read_like_files_in_memory(batches, tmp_path):
    paths = [str(tmp_path / str(number)) for number in range(SIZE)]
    for path, file in zip(paths, FILES, strict=True):
        with open(path, 'wb') as target:
            target.write(file)
    assert_same(take(batches_of(dataclasses.replace(ENCODED, content=Files(paths))), 9), batches)


def test_streams_have_the_order_of_their_shards():
    """The order of the views that the host makes, and the same pixels as elsewhere."""
    pipeline = pytest.importorskip('simclr_jax.data.pipeline', reason='streams need TensorFlow')

    examples = Examples('streamed', SIZE, streamed(FILES, LABELS), None, ('a', 'b', 'c'))
    order = {'batch_size': BATCH, 'seed': 3, 'start_step': 2}
    views = pipeline.TrainBatches(examples, make_policy(8, views=('crop', 'crop')), **order)
    found, expected = take(batches_of(examples, start_step=2), 6), take(views, 6)
    for name in ('index', 'label'):
        np.testing.assert_array_equal(column(found, name), column(expected, name))
    everything = take(batches_of(), 5)
    by_index = dict(zip(column(everything, 'index').tolist(), column(everything, 'images'), strict=True))
    for batch in found:
        np.testing.assert_array_equal(batch['images'], [by_index[index] for index in batch['index'].tolist()])


def damaged(kind):
    files = [b'no image' if number in DAMAGED else file for number, file in enumerate(FILES)]
    if kind == 'encoded':
        return Examples('damaged', SIZE, Encoded(files), LABELS, ('a', 'b', 'c'))
    pytest.importorskip('tensorflow', reason='streams need TensorFlow')
    return Examples('damaged', SIZE, streamed(files, LABELS), None, ('a', 'b', 'c'))


@pytest.mark.parametrize('kind', ['encoded', 'streamed'])
def test_unreadable_images_are_named_and_replaced(kind):
    """By the same images after a resumption."""
    examples = damaged(kind)
    batches = batches_of(examples, batch_size=6, max_unreadable=1 / 6)
    found = take(batches, 3)
    assert batches.unreadable == sorted(examples.id_of(number) for number in DAMAGED)
    assert not set(column(found, 'index')) & set(DAMAGED)
    for batch in found:
        np.testing.assert_array_equal(batch['label'], LABELS[batch['index']])
    assert_same(take(batches_of(examples, batch_size=6, max_unreadable=1 / 6, start_step=1), 2), found[1:])


@pytest.mark.parametrize('kind', ['encoded', 'streamed'])
def test_more_unreadable_images_than_allowed_stop_the_run(kind):
    batches = batches_of(damaged(kind), batch_size=6, max_unreadable=0.15)
    with pytest.raises(DataError, match=r'3 of 18 images of damaged(.|\n)*data\.max_unreadable=0\.15(.|\n)*damaged/16'):
        take(batches, 3)


def test_an_image_with_too_many_pixels_is_not_readable():
    few = dataclasses.replace(ENCODED, max_pixels=400)
    batches = batches_of(few, batch_size=6, max_unreadable=0.5)
    assert not set(column(take(batches, 3), 'index')) & {3, 8, 13}


def test_threads_end_with_the_batches():
    def threads():
        return [thread for thread in threading.enumerate() if thread.name.startswith('simclr-decode')]

    batches = batches_of(reading=Reading(threads=3))
    next(batches)
    assert threads()
    del batches
    gc.collect()
    for thread in threads():
        thread.join(5)
    assert not threads()


@pytest.mark.slow
def test_a_run_resumes_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, 'make_mesh', mesh_of(2))
    for number, file in enumerate(20 * FILES):
        path = tmp_path / 'folder' / 'abc'[number % 3] / f'{number}.image.{"png" if number % SIZE % 2 else "jpg"}'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file)

    def train(workdir):
        data = {'source': 'folder', 'path': tmp_path / 'folder', 'split': '', 'eval_split': '', 'feed': 'decoded'}
        options = [f'--config.data.{name}={value}' for name, value in data.items()]
        assert main(['train', *DIGITS_HERE, *options, f'--workdir={workdir}']) == 0

    train(tmp_path / 'whole')
    shutil.copytree(tmp_path / 'whole', tmp_path / 'parts')
    shutil.rmtree(tmp_path / 'parts' / 'checkpoints' / '12')
    train(tmp_path / 'parts')
    assert_same_bits(model_of(tmp_path / 'parts')[0], model_of(tmp_path / 'whole')[0])
