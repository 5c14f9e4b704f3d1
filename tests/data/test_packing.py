"""Packed data sets: what becomes of the images, interruptions, and what is read back."""

import dataclasses
import hashlib
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image

pytest.importorskip('tensorflow', reason='packing needs TensorFlow')

import tensorflow as tf

from simclr_jax.cli.main import main
from simclr_jax.config import ConfigError, base_config
from simclr_jax.data import images, packed, packing
from simclr_jax.data.folder import load_folder
from simclr_jax.data.packed import load_packed, read_index
from simclr_jax.data.packing import Packing, pack
from simclr_jax.data.pipeline import streamed_files
from simclr_jax.data.reader import images_at
from simclr_jax.data.select import select
from simclr_jax.data.spec import DataError, Decoded, Encoded, Examples, Reading, Share
from simclr_jax.evaluation.features import digest_of
from support.paths import REPOSITORY
from support.splits import streamed

HOW = Packing(side=16, quality=90, max_unreadable=0.1)
SIZE, DAMAGED = 18, 5
LABELS = np.arange(SIZE, dtype=np.int32) % 2
RANDOM = np.random.default_rng(0)


def encode(number):
    """A smooth picture, JPEG or PNG, every third one not larger than a packed one."""
    shape = [(60, 40), (16, 30), (33, 47)][number % 3]
    image = Image.fromarray(RANDOM.integers(0, 256, (4, 5, 3)).astype(np.uint8))
    file = io.BytesIO()
    image.resize(shape[::-1], Image.Resampling.BICUBIC).save(file, 'JPEG' if number % 2 else 'PNG')
    return file.getvalue()


FILES = [b'no image' if number == DAMAGED else encode(number) for number in range(SIZE)]
READABLE = [number for number in range(SIZE) if number != DAMAGED]


@pytest.fixture(autouse=True)
def shards(monkeypatch):
    """Five of them."""
    monkeypatch.setattr(packing, '_SHARD_IMAGES', 3)
    monkeypatch.setattr(packing, '_MOST_SHARDS', 5)


def source(kind='encoded'):
    if kind == 'streamed':
        return Examples('source', SIZE, streamed(FILES, LABELS), None, ('a', 'b'))
    return Examples('source', SIZE, Encoded(FILES), LABELS, ('a', 'b'))


def opened(directory, split='train'):
    data = base_config().data
    data.source, data.path = 'packed', os.fspath(directory)
    return load_packed(data, split)


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(epath.Path(directory).iterdir())}


@pytest.fixture
def directory(tmp_path):
    pack(source(), epath.Path(tmp_path / 'out'), 'train', HOW)
    return tmp_path / 'out'


def test_labels_ids_and_classes_are_those_of_the_source(directory):
    examples = opened(directory)
    assert examples.size == SIZE - 1
    assert examples.class_names == ('a', 'b')
    assert examples.ids() == [f'source/{number}' for number in READABLE]
    np.testing.assert_array_equal(examples.labels, LABELS[READABLE])
    assert examples.notes == (f'{directory}/train: 1 unreadable images were left out when it was packed.',)


def test_images_are_made_smaller_or_stay_as_they_are(directory):
    """A smaller one is what Pillow makes of it, with the colours of 4:2:0."""
    examples = opened(directory)
    found = dict(images_at(examples, range(examples.size)))
    for place, number in enumerate(READABLE):
        whole = images.decode(FILES[number])
        if min(whole.shape[:2]) <= HOW.side:
            assert packed.file_of(examples.content, place) == FILES[number]
        else:
            height, width = found[place].shape[:2]
            assert min(height, width) == HOW.side
            assert abs(width / height - whole.shape[1] / whole.shape[0]) < 0.05
            file = io.BytesIO()
            small = Image.fromarray(whole).resize((width, height), Image.Resampling.BICUBIC)
            small.save(file, 'JPEG', quality=90, subsampling='4:2:0')
            # Two encoders round differently.
            assert np.abs(found[place].astype(int) - images.decode(file.getvalue())).mean() < 2


@pytest.mark.parametrize('kind', ['streamed', 'decoded', 'folder'])
def test_every_kind_of_source_can_be_packed(kind, directory, tmp_path):
    if kind == 'streamed':
        pack(source('streamed'), epath.Path(tmp_path / 'again'), 'train', HOW)
        assert contents(tmp_path / 'again') == contents(directory)
    elif kind == 'decoded':
        pixels = RANDOM.integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)
        examples = Examples('arrays', 6, Decoded(pixels), np.full(6, -1, np.int32), ())
        pack(examples, epath.Path(tmp_path / 'again'), 'train', HOW)
        found = [image for _, image in images_at(opened(tmp_path / 'again'), range(6))]
        np.testing.assert_array_equal(found, pixels)
    else:
        for number in READABLE:
            path = tmp_path / 'folder' / 'ab'[number % 2] / f'{number}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(FILES[number])
        assert main(['pack', str(tmp_path / 'folder'), f'--out={tmp_path}/again', '--side=16']) == 0
        assert opened(tmp_path / 'again').ids() == load_folder(str(tmp_path / 'folder'), '').ids()


@pytest.mark.parametrize('kind', ['encoded', 'streamed'])
def test_an_interrupted_packing_goes_on(kind, directory, tmp_path, monkeypatch):
    """To the same bytes. The shards that were complete are not written again."""
    out, written = epath.Path(tmp_path / 'parts'), []
    write = packing._write

    def stop_at_the_third(path, name, *arguments):
        if len(written) == 2:
            path.write_text('half a shard')
            raise KeyboardInterrupt
        written.append(name)
        return write(path, name, *arguments)

    monkeypatch.setattr(packing, '_write', stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        pack(source(kind), out, 'train', HOW)
    with pytest.raises(DataError, match=r"no packed split 'train'; there are: none. simclr pack makes one"):
        opened(out)
    monkeypatch.setattr(packing, '_write', lambda *given: written.append(given[1]) or write(*given))
    steps = []
    pack(source(kind), out, 'train', HOW, steps.append)
    assert sum(steps) == SIZE
    assert sorted(written) == sorted(name for name in contents(directory) if name.startswith('packed-'))
    assert contents(out) == contents(directory)
    pack(source(kind), out, 'train', HOW)
    assert len(written) == 5


def test_a_directory_of_other_images_is_refused(directory):
    before = contents(directory)
    for how, message in ((Packing(8, 90, 0.1), 'side=16, now side=8'), (Packing(16, 50, 0.1), 'quality=90, now')):
        with pytest.raises(ConfigError, match=f'packed with {message}.*choose an empty directory for --out'):
            pack(source(), epath.Path(directory), 'train', how)
    fewer = Examples('source', 17, Encoded(FILES[:17]), LABELS[:17], ('a', 'b'))
    with pytest.raises(ConfigError, match=r'packed with images=18, now images=17|holds another packing'):
        pack(fewer, epath.Path(directory), 'train', HOW)
    assert contents(directory) == before


def test_more_unreadable_images_than_allowed_stop_the_packing(tmp_path):
    with pytest.raises(DataError, match=r'1 of 18 images of source .* --max-unreadable=0\.05 allows(.|\n)*source/5'):
        pack(source(), epath.Path(tmp_path / 'out'), 'train', Packing(16, 90, 0.05))


def test_several_labels_per_image_are_refused(tmp_path):
    several = Examples('voc', SIZE, Encoded(FILES), np.zeros((SIZE, 2), np.int32), ('a', 'b'))
    with pytest.raises(DataError, match='voc has several labels per image'):
        pack(several, epath.Path(tmp_path / 'out'), 'train', HOW)


def test_a_shard_that_reads_back_otherwise_is_an_error(directory):
    shard = epath.Path(directory) / 'packed-train.tfrecord-00001-of-00005'
    index = read_index(epath.Path(directory) / 'train.index.parquet')
    own = index.rows['shard'] == 1
    rows = {name: values[own] for name, values in index.rows.items() if name != 'id'}
    digest = hashlib.blake2b(digest_size=16)
    for number in np.flatnonzero(own):
        digest.update(packed.file_of(opened(directory).content, int(number)))
    index = packed.Index(rows, {'digest': digest.hexdigest()})
    packing._read_back(shard, index)
    for name, change in (('start', 1), ('length', -1)):
        moved = packed.Index(rows | {name: rows[name] + change}, index.description)
        with pytest.raises(DataError, match='reads back with other images; look at the disk'):
            packing._read_back(shard, moved)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match='reads back with damage'):
        packing._read_back(shard, index)


def test_a_packing_whose_index_is_lost_goes_on(directory):
    """The shards are there. A process that was killed between a shard and its part leaves the same."""
    before = contents(directory)
    (directory / 'train.index.parquet').unlink()
    pack(source(), epath.Path(directory), 'train', HOW)
    assert contents(directory) == before


def test_another_process_writes_the_same_bytes(directory, tmp_path):
    """So that two packings at once do not spoil each other."""
    script = (
        'import sys; sys.path[:0] = sys.argv[2:]\nfrom etils import epath\nfrom data import test_packing as test\n'
        'test.packing._SHARD_IMAGES, test.packing._MOST_SHARDS = 3, 5\n'
        'test.pack(test.source(), epath.Path(sys.argv[1]), "train", test.HOW)'
    )
    command = [sys.executable, '-c', script, str(tmp_path / 'again'), str(REPOSITORY / 'tests'), str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / 'again') == contents(directory)


def test_more_are_allowed_after_a_refusal(directory, tmp_path):
    out = epath.Path(tmp_path / 'again')
    with pytest.raises(DataError, match=r'more than --max-unreadable=0\.0 allows'):
        pack(source(), out, 'train', Packing(16, 90, 0.0))
    pack(source(), out, 'train', HOW)
    assert contents(out) == contents(directory)


def test_an_image_too_long_for_a_jpeg_is_made_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, '_LONGEST', 50)
    image = np.zeros((1, 20, 200, 3), np.uint8)
    examples = Examples('long', 1, Decoded(image), np.zeros(1, np.int32), ('a',))
    pack(examples, epath.Path(tmp_path / 'out'), 'train', HOW)
    ((_, found),) = images_at(opened(tmp_path / 'out'), [0])
    assert found.shape == (5, 50, 3)


def test_the_folder_train_alone_keeps_its_classes(tmp_path, capsys):
    for name in 'ab':
        path = tmp_path / 'folder' / 'train' / name / '0.jpg'
        path.parent.mkdir(parents=True)
        path.write_bytes(FILES[1])
    assert main(['pack', str(tmp_path / 'folder'), f'--out={tmp_path}/out']) == 0
    assert '2 images of' in capsys.readouterr().out
    assert opened(tmp_path / 'out').class_names == ('a', 'b')


def test_splits_share_their_classes(directory, tmp_path, capsys):
    """A test split may lack some. Labels would else mean other classes to TensorFlow Datasets."""
    for split, names in (('train', 'abc'), ('test', 'bc')):
        for name in names:
            path = tmp_path / 'folder' / split / name / '0.jpg'
            path.parent.mkdir(parents=True)
            path.write_bytes(FILES[1])
    assert main(['pack', str(tmp_path / 'folder'), f'--out={tmp_path}/shared']) == 0
    test = opened(tmp_path / 'shared', 'test')
    assert (test.class_names, test.labels.tolist()) == (('a', 'b', 'c'), [1, 2])
    other = Examples('other', 2, Encoded(FILES[:2]), np.zeros(2, np.int32), ('x',))
    with pytest.raises(ConfigError, match='has 2 classes, and not those of other; choose an empty directory'):
        pack(other, epath.Path(directory), 'test', HOW)


@pytest.mark.parametrize('name', ['photo.jpg', 'dataset_info.json', 'packed-train.tfrecord-00000-of-00009'])
def test_a_directory_with_other_files_is_refused(tmp_path, name):
    (tmp_path / name).write_text('mine')
    with pytest.raises(ConfigError, match=r'holds photo.jpg; choose|holds dataset_info|holds another packing of train'):
        pack(source(), epath.Path(tmp_path), 'train', HOW)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_damaged_descriptions_are_made_again(directory):
    before = contents(directory)
    for name in ('dataset_info.json', 'features.json'):
        (directory / name).write_text('{')
        pack(source(), epath.Path(directory), 'train', HOW)
    assert contents(directory) == before


def test_a_full_disk_is_told_as_one(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise tf.errors.ResourceExhaustedError(None, None, 'No space left on device')

    monkeypatch.setattr(tf.io.TFRecordWriter, 'write', fail)
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / '1.jpg').write_bytes(FILES[1])
    assert main(['pack', f'folder:{tmp_path}/folder', f'--out={tmp_path}/out']) == 2
    told = capsys.readouterr().err
    assert 'No space left on device. Make room on the disk' in told
    assert '00000-of-00001' in told
    assert list((tmp_path / 'out').iterdir()) == []


def test_memory_that_ends_is_told(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise MemoryError('Unable to allocate 9 TiB')

    monkeypatch.setattr('simclr_jax.cli.pack._open', fail)
    assert main(['pack', str(tmp_path), f'--out={tmp_path}/out']) == 2
    assert 'smaller images, or a machine with more memory' in capsys.readouterr().err


def test_tensorflow_datasets_reads_it(directory):
    import tensorflow_datasets as tfds

    pack(source(), epath.Path(directory), 'test', HOW)
    builder = tfds.builder_from_directory(directory)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {'train': 17, 'test': 17}
    rows = list(builder.as_dataset(split='train').as_numpy_iterator())
    assert [row['id'].decode() for row in rows] == opened(directory).ids()
    np.testing.assert_array_equal([row['label'] for row in rows], LABELS[READABLE])


def test_a_damaged_directory_is_told(directory):
    shard = epath.Path(directory) / 'packed-train.tfrecord-00001-of-00005'
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf'00001-of-00005 has {len(content) - 1:,} bytes, not {len(content):,}; copy'):
        opened(directory)
    shard.unlink()
    with pytest.raises(DataError, match='00001-of-00005 is missing; copy the packed images again as a whole'):
        opened(directory)
    with pytest.raises(DataError, match=r"no packed split 'test'; there are: train"):
        opened(directory, 'test')
    index = directory / 'train.index.parquet'
    content = index.read_bytes()
    for damaged in (b'text', content[:-9], content[:40] + b'damage' + content[46:]):
        index.write_bytes(damaged)
        with pytest.raises(DataError, match=r'train\.index\.parquet is no index of packed images'):
            opened(directory)


def test_a_shard_that_shrinks_while_it_is_read_is_no_image(directory):
    examples = opened(directory)
    packed._open.cache_clear()
    shard = epath.Path(directory) / 'packed-train.tfrecord-00001-of-00005'
    shard.write_bytes(shard.read_bytes()[:20])
    with pytest.raises(images.ImageError, match='is shorter than its index says'):
        packed.file_of(examples.content, 4)


def test_streams_give_the_same_images(directory, monkeypatch):
    """As on gs://, where the shards are read in order."""
    local = opened(directory)
    monkeypatch.setattr(packed, 'is_remote', lambda path: True)
    stream = opened(directory)
    assert (stream.size, stream.labels, stream.class_names) == (local.size, None, local.class_names)
    assert stream.ids() == local.ids()
    with pytest.raises(DataError, match='no part of it can be chosen: copy the packed images to a local disk'):
        select(stream, np.array([0]))
    order = {'batch_size': 17, 'seed': 0, 'start_step': 0, 'share': Share(), 'reading': Reading()}
    index, labels, files = next(streamed_files(stream, **order))
    np.testing.assert_array_equal(np.sort(index), np.arange(17))
    np.testing.assert_array_equal(labels, local.labels[index])
    assert files.tolist() == [packed.file_of(local.content, number) for number in index.tolist()]


def test_features_of_packed_images_are_not_those_of_the_original(directory, tmp_path, monkeypatch):
    pack(source(), epath.Path(tmp_path / 'finer'), 'train', Packing(16, 95, 0.1))
    again = [opened(tmp_path / 'finer'), opened(directory)]
    monkeypatch.setattr(packed, 'is_remote', lambda path: True)
    again += [opened(directory), opened(tmp_path / 'finer')]
    names = [dataclasses.replace(examples, name='same') for examples in (source(), *again)]
    assert len({digest_of(examples) for examples in names}) == 5


@pytest.mark.parametrize(
    'options, message',
    [
        (['--side=8'], '--side=8: must be from 16 to 4096'),
        (['--quality=0'], '--quality=0: must be from 1 to 100'),
        (['--max-unreadable=2'], '--max-unreadable=2.0: must be from 0 to 1'),
        (['--splits=train,a/b'], "--splits=train,a/b: 'a/b' must be letters, digits and _"),
    ],
)
def test_wrong_options(options, message, tmp_path, capsys):
    assert main(['pack', str(tmp_path), f'--out={tmp_path}/out', *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
