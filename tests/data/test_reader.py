"""Evaluation's batches and whole images: the order, the pixels, and what is left out."""

import io

import numpy as np
import pytest
from PIL import Image

from simclr_jax.augment.center import center_crop
from simclr_jax.data.reader import decode_all, eval_batches, images_at
from simclr_jax.data.spec import DataError, Decoded, Encoded, Examples, Files, Share, Streamed
from support.splits import packed

SIZE = 18
IMAGES = np.random.default_rng(0).integers(0, 256, size=(SIZE, 10, 12, 3), dtype=np.uint8)
LABELS = np.arange(SIZE, dtype=np.int32) % 3
KINDS = ['decoded', 'encoded', 'files', 'packed', 'streamed']
DAMAGED = [3, 8, 15]


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'PNG')
    return file.getvalue()


FILES = [png(image) for image in IMAGES]
WITH_DAMAGE = [{3: b'text', 8: FILES[8][:40], 15: b''}.get(n, file) for n, file in enumerate(FILES)]


def streamed(files):
    """A split that is read in order, in two shards."""
    tf = pytest.importorskip('tensorflow', reason='streamed splits need TensorFlow')
    half = len(files) // 2

    def read(shard):
        return tf.data.Dataset.range(len(files)).skip(shard * half).take(half).map(lambda index: (index, index))

    def parse(index):
        return tf.gather(files, index), tf.gather(LABELS, index)

    return Streamed([half, half], read, parse, lanes=1, shuffle_buffer=4)


def make(kind, directory, files=FILES):
    """The files as one kind of content."""
    paths = [str(directory / f'{n:02}.png') for n in range(SIZE)]
    if kind == 'files':
        for path, file in zip(paths, files, strict=True):
            with open(path, 'wb') as opened:
                opened.write(file)
    contents = {
        'decoded': lambda: Decoded(IMAGES),
        'encoded': lambda: Encoded(files),
        'files': lambda: Files(paths),
        'packed': lambda: packed(directory, files),
        'streamed': lambda: streamed(files),
    }
    return Examples(kind, SIZE, contents[kind](), None if kind == 'streamed' else LABELS, ('a', 'b', 'c'))


def column(batches, name):
    return np.concatenate([batch[name] for batch in batches])


@pytest.mark.parametrize('size, view_size', [(18, 8), (7, 40)], ids=['up to 32: resized', 'above: cropped'])
@pytest.mark.parametrize('kind', KINDS)
def test_evaluation_sees_every_image_once_in_order(tmp_path, kind, size, view_size):
    """`size` is the limit; batches of 4 do not divide it."""
    batches = list(eval_batches(make(kind, tmp_path), view_size, batch_size=4, limit=size))
    assert len(batches) == -(-size // 4)
    for batch in batches:
        assert {name: (rows.dtype, rows.shape) for name, rows in batch.items()} == {
            'views': (np.float32, (4, 1, view_size, view_size, 3)),
            'label': (np.int32, (4,)),
            'mask': (np.float32, (4,)),
            'index': (np.int32, (4,)),
        }
    padding = np.arange(4 * len(batches)) >= size
    np.testing.assert_array_equal(column(batches, 'mask'), ~padding)
    np.testing.assert_array_equal(column(batches, 'index'), np.where(padding, -1, np.arange(4 * len(batches))))
    np.testing.assert_array_equal(column(batches, 'label')[padding], -1)
    np.testing.assert_array_equal(column(batches, 'label')[:size], LABELS[:size])
    # Streamed images are cropped by TensorFlow, in another order of float32 sums.
    found, expected = column(batches, 'views')[:, 0], center_crop(IMAGES[:size], view_size)
    np.testing.assert_allclose(found[:size], expected, rtol=0, atol=1e-6 if kind == 'streamed' else 0)
    np.testing.assert_array_equal(found[padding], 0)


@pytest.mark.parametrize('kind', ['decoded', 'streamed'])
def test_evaluation_in_shares_is_that_of_one_process(tmp_path, kind):
    examples = make(kind, tmp_path)
    whole = list(eval_batches(examples, 8, batch_size=8))
    shares = [list(eval_batches(examples, 8, batch_size=8, share=Share(n, 2))) for n in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        for name, rows in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), rows)


def test_evaluation_beyond_the_split_ends_with_it(tmp_path):
    batches = eval_batches(make('decoded', tmp_path), 8, batch_size=9, limit=99)
    assert [batch['mask'].sum() for batch in batches] == [9, 9]


@pytest.mark.parametrize('kind', ['encoded', 'files', 'streamed'])
def test_evaluation_leaves_unreadable_images_out(tmp_path, kind):
    """As many batches as without them, so that all processes have the same number."""
    batches = list(eval_batches(make(kind, tmp_path, WITH_DAMAGE), 8, batch_size=6))
    assert len(batches) == SIZE // 6
    readable = [n for n in range(SIZE) if n not in DAMAGED]
    padding = [-1] * len(DAMAGED)
    np.testing.assert_array_equal(column(batches, 'mask'), [1] * len(readable) + [0] * len(padding))
    np.testing.assert_array_equal(column(batches, 'index'), readable + padding)
    np.testing.assert_array_equal(column(batches, 'label'), list(LABELS[readable]) + padding)
    np.testing.assert_array_equal(column(batches, 'views')[len(readable) :], 0)


@pytest.mark.parametrize('kind', KINDS)
def test_chosen_images_are_given_once_and_in_order(tmp_path, kind):
    found = list(images_at(make(kind, tmp_path), [11, 2, 11, 17]))
    assert [index for index, _ in found] == [2, 11, 17]
    for index, image in found:
        np.testing.assert_array_equal(image, IMAGES[index])


@pytest.mark.parametrize('kind', ['encoded', 'files', 'packed', 'streamed'])
def test_unreadable_images_are_not_given(tmp_path, kind):
    assert [index for index, _ in images_at(make(kind, tmp_path, WITH_DAMAGE), [2, 3, 8, 9])] == [2, 9]


@pytest.mark.parametrize('kind', ['decoded', 'encoded', 'files'])
def test_a_whole_split_is_decoded(tmp_path, kind):
    examples = make(kind, tmp_path)
    decoded = decode_all(examples, IMAGES.nbytes)
    assert decoded.notes == ()
    np.testing.assert_array_equal(decoded.content.images, IMAGES)
    with pytest.raises(DataError, match=r'takes 6,480 bytes in memory, more than 6,479; choose data\.feed=decoded'):
        decode_all(examples, IMAGES.nbytes - 1)


@pytest.mark.parametrize('kind', ['encoded', 'files'])
def test_a_split_is_decoded_without_its_unreadable_images(tmp_path, kind):
    examples = make(kind, tmp_path, WITH_DAMAGE)
    decoded = decode_all(examples, 10**6, max_unreadable=1 / 6)
    readable = [n for n in range(SIZE) if n not in DAMAGED]
    assert decoded.notes == tuple(f'Skipped, not a readable image: {examples.ids()[n]}' for n in DAMAGED)
    np.testing.assert_array_equal(decoded.content.images, IMAGES[readable])
    np.testing.assert_array_equal(decoded.labels, LABELS[readable])
    with pytest.raises(DataError, match=r'3 of 18 .* are not readable images, more than data\.max_unreadable=0\.1'):
        decode_all(examples, 10**6, max_unreadable=0.1)


def test_images_above_the_limit_are_left_out(tmp_path):
    examples = make('encoded', tmp_path)
    small = Examples('some', SIZE, examples.content, LABELS, ('a', 'b', 'c'), max_pixels=119)
    assert list(images_at(small, [0])) == []
    assert column(list(eval_batches(small, 8, batch_size=6)), 'mask').sum() == 0


def test_threads_end_with_a_reader_that_is_not_read_to_its_end(tmp_path):
    batches = eval_batches(make('encoded', tmp_path), 8, batch_size=2)
    assert next(batches)['index'].tolist() == [0, 1]
    batches.close()


def test_a_missing_image_may_be_any_of_many():
    """More tasks than all threads take at once."""
    files = [FILES[0] if n % 7 else b'' for n in range(500)]
    examples = Examples('many', 500, Encoded(files), np.zeros(500, np.int32), ('a',))
    assert [index for index, _ in images_at(examples, range(500))] == [n for n in range(500) if n % 7]
    assert [batch['mask'].sum() for batch in eval_batches(examples, 8, batch_size=250)] == [250, 178]
