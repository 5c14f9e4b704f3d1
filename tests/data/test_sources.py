"""What each source says there is: images, labels, classes, and what it answers to what is not there."""

import dataclasses
import pathlib
import zipfile

import numpy as np
import pytest
from sklearn import datasets

from simclr_jax.data import arrays, folder
from simclr_jax.data.sources import align_classes
from simclr_jax.data.spec import DataError, Decoded, Encoded, Examples, Streamed
from support.paths import SHARED
from support.splits import assert_contract, save_images

DATA = SHARED / 'data'
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f'the prepared data sets are not at {DATA}')

RANDOM = np.random.default_rng(0)
COLOR = RANDOM.integers(1, 256, size=(5, 6, 4, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 1, -1, 2])


# Digits and noise.


def test_digits_are_those_of_scikit_learn_divided_in_two():
    digits = datasets.load_digits()
    train, test = arrays.load_digits('train'), arrays.load_digits('test')
    assert (train.size, test.size) == (1437, 360)
    for split in (train, test):
        assert_contract(split)
        assert split.class_names == tuple('0123456789')
        channels = split.content.images
        assert (channels == channels[..., :1]).all()
    # Every image of the original, 0..16 scaled to 0..255, lies in one of the two at its place.
    places = np.arange(0, train.size, 4)
    images = np.insert(train.content.images[..., 0], places, test.content.images[..., 0], axis=0)
    np.testing.assert_allclose(images, digits.images * 255 / 16, rtol=0, atol=0.5)  # rounding
    np.testing.assert_array_equal(np.insert(train.labels, places, test.labels), digits.target)


def test_digits_have_no_other_split():
    with pytest.raises(DataError, match=r"data.split='validation': .* train and test"):
        arrays.load_digits('validation')


def test_fake_images_follow_from_the_splits_name():
    train = arrays.make_fake('train', 40, 8)
    assert_contract(train)
    assert train.content.images.shape == (40, 8, 8, 3)
    np.testing.assert_array_equal(train.content.images, arrays.make_fake('train', 40, 8).content.images)
    assert (train.content.images != arrays.make_fake('validation', 40, 8).content.images).any()


# Arrays in .npz files.


@pytest.fixture
def npz(tmp_path):
    """npz(image=..., label=...) -> path."""

    def write(**contents):
        np.savez(tmp_path / 'data.npz', **contents)
        return str(tmp_path / 'data.npz')

    return write


@pytest.mark.parametrize('image, label', [('image', 'label'), ('images', 'labels'), ('x', 'y')])
def test_npz_under_each_name(npz, image, label):
    examples = arrays.load_npz(npz(**{image: COLOR, label: LABELS}), 'train')
    assert_contract(examples)
    np.testing.assert_array_equal(examples.content.images, COLOR)
    np.testing.assert_array_equal(examples.labels, LABELS)
    assert examples.class_names == ('0', '1', '2')


@pytest.mark.parametrize(
    'images, expected',
    [
        (COLOR[..., 0], np.stack([COLOR[..., 0]] * 3, axis=-1)),
        (COLOR[..., :1], np.stack([COLOR[..., 0]] * 3, axis=-1)),
        (np.concatenate([COLOR, COLOR[..., :1]], axis=-1), COLOR),
    ],
    ids=['grey', 'grey with an axis', 'alpha'],
)
def test_npz_images_get_three_channels(npz, images, expected):
    examples = arrays.load_npz(npz(image=images), '')
    assert_contract(examples)
    np.testing.assert_array_equal(examples.content.images, expected)


@pytest.mark.parametrize('labels', [{}, {'label': np.full(5, -1)}], ids=['absent', 'all -1'])
def test_npz_without_labels_has_no_classes(npz, labels):
    examples = arrays.load_npz(npz(image=COLOR, **labels), 'train')
    assert examples.num_classes == 0
    np.testing.assert_array_equal(examples.labels, np.full(5, -1))


def test_npz_of_encoded_files(npz):
    files = [b'first', b'2', b'the third']
    examples = arrays.load_npz(
        npz(
            jpeg=np.frombuffer(b''.join(files), np.uint8),
            offset=np.cumsum([0] + [len(file) for file in files]),
            label=np.array([1, 0, 1], np.uint8),
        ),
        'train',
    )
    assert_contract(examples)
    assert examples.content == Encoded(files)


def test_npz_of_each_split_stands_for_itself(tmp_path):
    for split, images in {'train': COLOR[:3], 'test': COLOR[3:]}.items():
        np.savez(tmp_path / f'data_{split}.npz', image=images)
    path = str(tmp_path / 'data_{split}.npz')
    assert arrays.load_npz(path, 'train').size == 3
    assert arrays.load_npz(path, 'test').size == 2
    with pytest.raises(DataError, match=r"no file .*data_other.npz; give one .* becomes 'other'"):
        arrays.load_npz(path, 'other')


def test_npz_in_one_file_has_no_second_split(npz):
    with pytest.raises(DataError, match=r"holds no split 'test'; write \{split\} .* or set data.eval_split=''"):
        arrays.load_npz(npz(image=COLOR), 'test')


JPEG = np.zeros(10, np.uint8)

WRONG_CONTENTS = {
    'float images': ({'image': COLOR / 255}, r'images are float64 \[5, 6, 4, 3\]; must be uint8'),
    'two channels': ({'image': COLOR[..., :2]}, r'images are uint8 \[5, 6, 4, 2\]; .* 1, 3 or 4 channels'),
    'one image': ({'image': COLOR[0, :, 0]}, r'images are uint8 \[6, 3\]; must be'),
    'no images': ({'image': COLOR[:0]}, 'holds no images'),
    'other names': ({'picture': COLOR}, r"holds \['picture'\]; it must hold 'image', or 'jpeg' and 'offset'"),
    'too few labels': ({'image': COLOR, 'label': LABELS[:4]}, r"'label' is int64 \[4\]; .* each of 5 images"),
    'float labels': ({'image': COLOR, 'label': LABELS / 1}, r"'label' is float64 \[5\]; must be integers"),
    'a column of labels': ({'image': COLOR, 'label': LABELS[:, None]}, r"'label' is int64 \[5, 1\];"),
    'several class numbers': ({'image': COLOR, 'label': np.eye(5, dtype=int) * 2}, r'\[5, 5\]; .* 1 \(present\), 0'),
    'too few rows of labels': ({'image': COLOR, 'label': np.eye(4, dtype=int)}, r"'label' is int64 \[4, 4\];"),
    'negative labels': ({'image': COLOR, 'label': LABELS - 1}, r"'label' .* must be integers >= -1"),
    'offset beyond': ({'jpeg': JPEG, 'offset': np.array([0, 11])}, r"'offset' is \[ 0 11\]; must not fall, .* 10"),
    'offset falls': ({'jpeg': JPEG, 'offset': np.array([0, 7, 3, 10], 'u8')}, r"'offset' .* must not fall"),
    'no offset': ({'jpeg': JPEG, 'offset': np.zeros(0, int)}, r"'offset' .* must not fall"),
    'no pixels': ({'image': COLOR[:, :0]}, r'images are uint8 \[5, 0, 4, 3\]; must be'),
    'not a number': ({'image': np.where(np.arange(5)[:, None, None] == 3, np.nan, 0.5)}, 'pixels of image 3 are not'),
    'float offset': ({'jpeg': JPEG, 'offset': np.array([0.0, 10.0])}, r"'offset' is float64 \[2\]; must be"),
    'wide jpeg': ({'jpeg': JPEG.astype(int), 'offset': np.array([0, 10])}, r"'jpeg' is int64 \[10\] "),
    'pickled': ({'image': np.array([{}], object)}, 'not an .npz file of plain arrays: .* numpy.savez'),
}


@pytest.mark.parametrize('contents, message', WRONG_CONTENTS.values(), ids=WRONG_CONTENTS)
def test_npz_with_wrong_contents_says_what_they_must_be(npz, contents, message):
    with pytest.raises(DataError, match=message):
        arrays.load_npz(npz(**contents), 'train')


def test_npz_of_encoded_files_may_hold_an_empty_one(npz):
    """It is an image that is not readable, as an empty file of a folder is."""
    path = npz(jpeg=JPEG, offset=np.array([0, 5, 5, 10]))
    assert [len(file) for file in arrays.load_npz(path, '').content.files] == [5, 0, 5]


def test_npz_that_unpacks_to_more_than_allowed_is_refused_by_its_headers(tmp_path):
    """Zeros pack a thousandfold. An array that is not packed may be as large as its file."""
    packed, plain = tmp_path / 'packed.npz', tmp_path / 'plain.npz'
    zeros = np.zeros((40, 50, 50, 3), np.uint8)
    np.savez_compressed(packed, image=zeros)
    np.savez(plain, image=zeros)
    assert packed.stat().st_size < 2000
    with pytest.raises(
        DataError, match=r'packed\.npz unpacks to 300,128 bytes, more than data\.memory_limit_gb=.*raise'
    ):
        arrays.load_npz(str(packed), '', most_bytes=300_000)
    assert arrays.load_npz(str(packed), '', most_bytes=300_128).size == 40
    assert arrays.load_npz(str(plain), '', most_bytes=300_000).size == 40


def test_npz_whose_array_says_more_than_it_holds_is_refused(tmp_path):
    """A header of a few bytes may ask NumPy for any amount of memory."""
    header = np.lib.format.header_data_from_array_1_0(np.zeros((1, 1), np.uint8)) | {'shape': (10**6, 10**6)}
    with zipfile.ZipFile(tmp_path / 'data.npz', 'w') as packed, packed.open('image.npy', 'w') as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(DataError, match=r'unpacks to 1,000,000,000,000 bytes'):
        arrays.load_npz(str(tmp_path / 'data.npz'), '')


def test_npz_that_is_damaged_says_so(npz):
    path = pathlib.Path(npz(image=COLOR))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    single_array = path.with_suffix('.npy')
    np.save(single_array, COLOR)
    for damaged in (b'', b'text', whole[: len(whole) // 2], flipped, single_array.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r'data.npz is not an .npz file of plain arrays: .* numpy.savez'):
            arrays.load_npz(str(path), 'train')


# Classes of two splits.


def test_classes_are_aligned_by_name(tmp_path):
    save_images(tmp_path, [f'train/{name}/1.png' for name in ('ant', 'bee', 'cat', 'dog')])
    save_images(tmp_path, [f'test/{name}/1.png' for name in ('bee', 'dog')])
    train, test = (folder.load_folder(str(tmp_path), split) for split in ('train', 'test'))
    aligned = align_classes(test, train)
    assert aligned.class_names == train.class_names
    np.testing.assert_array_equal(aligned.labels, [1, 3])
    assert aligned.content == test.content

    with pytest.raises(DataError, match=r"unknown there: ant, cat\. .*data.eval_split=''"):
        align_classes(train, test)


def test_unlabelled_images_stay_unlabelled_when_classes_are_aligned():
    train = Examples('train', 3, Decoded(COLOR[:3]), np.array([0, 1, 2], np.int32), ('ant', 'bee', 'cat'))
    partly = Examples('test', 3, Decoded(COLOR[:3]), np.array([1, -1, 0], np.int32), ('bee', 'cat'))
    np.testing.assert_array_equal(align_classes(partly, train).labels, [2, -1, 1])
    without = dataclasses.replace(partly, labels=np.full(3, -1, np.int32), class_names=())
    assert align_classes(without, train) is without
    assert align_classes(train, train) is train


# TensorFlow Datasets.


def load_tfds(name, split, *, data_dir=DATA / 'tfds', memory_limit=2**30):
    """The source under test, imported where TensorFlow may be."""
    pytest.importorskip('tensorflow_datasets', reason='the source tfds needs TensorFlow Datasets')
    from simclr_jax.data import tfds

    return tfds.load_tfds(name, split, str(data_dir), memory_limit=memory_limit, shuffle_buffer=100, lanes=64)


@pytest.fixture(scope='module')
def cifar10_test():
    return load_tfds('cifar10', 'test')


@needs_data
def test_tfds_holds_the_images_of_the_npz_files(cifar10_test):
    """The two copies of CIFAR-10 are of the same files, stored in different orders."""
    assert_contract(cifar10_test)
    assert cifar10_test.size == 10_000
    assert cifar10_test.class_names[:4] == ('airplane', 'automobile', 'bird', 'cat')
    copy = arrays.load_npz(str(DATA / 'cifar10_{split}_jpeg.npz'), 'test')
    assert_contract(copy)

    def contents(examples):
        return sorted(zip(examples.content.files, examples.labels.tolist(), strict=True))

    assert contents(cifar10_test) == contents(copy)


@needs_data
def test_tfds_knows_parts_of_splits_and_greyscale(cifar10_test):
    part = load_tfds('cifar10', 'test[10%:60%]')
    assert part.content.files == cifar10_test.content.files[1000:6000]
    np.testing.assert_array_equal(part.labels, cifar10_test.labels[1000:6000])
    assert part.ids()[-1] == 'cifar10/test[10%:60%]/4999'
    grey = load_tfds('fashion_mnist', 'test')
    assert_contract(grey)
    assert (grey.size, grey.num_classes) == (2_000, 10)


@needs_data
def test_streamed_split_is_the_one_in_memory(cifar10_test):
    """A part that begins and ends inside of shards, the hardest case: 2,500 examples are in each."""
    from simclr_jax.data import streams

    streamed = load_tfds('cifar10', 'test[24%:51%]', memory_limit=0)
    assert isinstance(streamed.content, Streamed)
    assert (streamed.size, streamed.labels, streamed.class_names) == (2700, None, cifar10_test.class_names)
    assert streamed.content.shard_sizes == [100, 2500, 100]
    files, labels = cifar10_test.content.files[2400:5100], cifar10_test.labels[2400:5100].tolist()
    rows = streams.stored_rows(streamed.content).map(lambda index, record: (index, *streamed.content.parse(record)))
    stored = [(int(index), file, int(label)) for index, file, label in rows.as_numpy_iterator()]
    assert stored == list(zip(range(2700), files, labels, strict=True))


@needs_data
@pytest.mark.parametrize('split', ['test', 'test[:50%]'])
def test_a_split_streams_if_it_is_larger_than_the_memory_allowed(split):
    """The stored test set has 9.4 MiB: half of it has 4.7."""
    small, large = (2 * 2**20, 12 * 2**20)
    assert isinstance(load_tfds('cifar10', split, memory_limit=small).content, Streamed)
    assert isinstance(load_tfds('cifar10', split, memory_limit=large).content, Encoded)


@needs_data
@pytest.mark.parametrize(
    'name, split, message',
    [
        ('cifar1', 'train', r'data.name=cifar1: .* cannot load it: .*not found.*did you mean cifar10.* or '),
        ('cifar10:9.9.9', 'train', r'data.name=cifar10:9.9.9: .* cannot load it: .* only: 3.0.2'),
        ('cifar10', 'validation', r"data.eval_split='validation': cifar10 has train, test .*train\[:80%\]"),
        ('cifar10', 'train[:10', r"data.eval_split='train\[:10': cifar10 has train, test"),
        ('cifar10', 'train[:0]', r"split 'train\[:0\]' is empty"),
        ('mnist', 'train', r'data.name=mnist is not prepared in .*tfds.*; set TFDS_DATA_DIR .* build mnist'),
    ],
)
def test_tfds_that_cannot_be_read_names_the_cure(name, split, message):
    with pytest.raises(DataError, match=message):
        load_tfds(name, split)


def test_tfds_in_another_directory_is_not_prepared(tmp_path):
    with pytest.raises(DataError, match=r'data.name=cifar10 is not prepared in .*; set TFDS_DATA_DIR'):
        load_tfds('cifar10', 'train', data_dir=tmp_path)


@pytest.mark.parametrize('name', ['huggingface:mnist', 'kubric:movi_a/128x128:1.0.0', 'any-one:x'])
def test_tfds_fetches_nothing_of_communities_unless_allowed(name, monkeypatch):
    tfds = pytest.importorskip('tensorflow_datasets', reason='the source tfds needs TensorFlow Datasets')
    asked = []

    def builder(name, **options):
        asked.append(name)
        raise ValueError('not here')

    monkeypatch.setattr(tfds, 'builder', builder)
    with pytest.raises(DataError, match=r'from the network; .* SIMCLR_TFDS_COMMUNITY=1'):
        load_tfds(name, 'train')
    assert asked == []
    monkeypatch.setenv('SIMCLR_TFDS_COMMUNITY', '1')
    with pytest.raises(DataError, match='not here'):
        load_tfds(name, 'train')
    assert asked == [name]


def test_tfds_in_each_format(tmp_path):
    """Blocks of tfrecord's records, single examples of others, and one that TFDS does not read this way."""
    tfds = pytest.importorskip('tensorflow_datasets', reason='the source tfds needs TensorFlow Datasets')

    class Numbered(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            features = {'image': tfds.features.Image(), 'label': tfds.features.ClassLabel(num_classes=3)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {'train': self._generate_examples()}

        def _generate_examples(self):
            for n in range(9):
                yield n, {'image': np.full((2, 2, 3), n, np.uint8), 'label': n % 3}

    def load(file_format, **limit):
        folder = tmp_path / file_format
        if not folder.exists():
            Numbered(data_dir=folder, file_format=file_format).download_and_prepare()
        return load_tfds('numbered', 'train', data_dir=folder, **limit)

    records, others = load('tfrecord'), load('parquet')
    assert sorted(records.labels) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert records.content == others.content
    np.testing.assert_array_equal(records.labels, others.labels)
    with pytest.raises(DataError, match=r'is stored as parquet, and larger than .* with --file_format=tfrecord'):
        load('parquet', memory_limit=0)
    with pytest.raises(DataError, match=r'is stored as array_record, which .* with --file_format=tfrecord'):
        load('array_record')
