"""The data sets of the transfer experiments, and what a data set's name means."""

import inspect
import re

import numpy as np
import pytest
from PIL import Image

from simclr_jax.config import base_config
from simclr_jax.data.sources import load_examples
from simclr_jax.data.spec import DataError, Decoded, Examples
from simclr_jax.data.suite import TRANSFER_SUITE, DatasetSpec, resolve_dataset
from support.paths import SHARED

TFDS = SHARED / 'data' / 'tfds'
needs_data = pytest.mark.skipif(not TFDS.is_dir(), reason=f'the prepared data sets are not at {TFDS}')

MEMBERS = {member.name: member for member in TRANSFER_SUITE}
# Classes in table 8 of the paper; Caltech-101 has its background as one more.
NUM_CLASSES = {
    'food101': 101,
    'cifar10': 10,
    'cifar100': 100,
    'sun397': 397,
    'cars': 196,
    'voc2007': 20,
    'dtd': 47,
    'pets': 37,
    'caltech101': 102,
    'flowers': 102,
}


@pytest.fixture(scope='module')
def tfds():
    return pytest.importorskip('tensorflow_datasets', reason='the source tfds needs TensorFlow Datasets')


# The transfer suite.


def test_the_suite_is_the_papers():
    """arXiv 2002.05709, appendix B.8: data sets, metrics, and who defines a validation split."""
    assert len(MEMBERS) == len(TRANSFER_SUITE) == 12
    of_metric = {
        'top1': {'food101', 'cifar10', 'cifar100', 'birdsnap', 'sun397', 'cars', 'dtd'},
        'mean_per_class': {'aircraft', 'pets', 'caltech101', 'flowers'},
        'map_11_point': {'voc2007'},
    }
    for metric, names in of_metric.items():
        assert {name for name, member in MEMBERS.items() if member.metric == metric} == names
    validated = {name for name, member in MEMBERS.items() if member.validation_split}
    assert validated == {'aircraft', 'voc2007', 'dtd', 'flowers'}
    assert {name for name, member in MEMBERS.items() if not member.is_in_tfds} == {'birdsnap', 'aircraft'}


@pytest.mark.parametrize('name, num_classes', NUM_CLASSES.items())
def test_tfds_prepares_the_suite(tfds, tmp_path, name, num_classes):
    """As the installed version describes it; nothing is downloaded."""
    member = MEMBERS[name]
    builder = tfds.builder(member.tfds_name, data_dir=tmp_path)
    features = builder.info.features
    if member.metric == 'map_11_point':
        assert features['labels'].feature.num_classes == num_classes
        assert features['labels_no_difficult'].feature.num_classes == num_classes
    else:
        assert features['label'].num_classes == num_classes
    assert 'image' in features

    # An unprepared builder knows its splits only in its code.
    source = inspect.getsource(type(builder)._split_generators)
    for split in {member.train_split, member.validation_split, member.test_split} - {''}:
        assert re.search(rf'Split\.{split.upper()}\b|["\']{split}["\']', source), split


def test_tfds_has_not_the_other_two(tfds):
    for member in TRANSFER_SUITE:
        if not member.is_in_tfds:
            with pytest.raises(tfds.core.DatasetNotFoundError):
                tfds.builder_cls(member.tfds_name)


@pytest.mark.parametrize(
    'text, name, eval_split, validation_split',
    [
        ('food101', 'food101', 'validation', ''),
        ('cars', 'cars196', 'test', ''),
        ('oxford_flowers102', 'oxford_flowers102', 'test', 'validation'),
        ('sun397', 'sun397/standard-part1-120k', 'test', ''),
        ('voc2007:5.0.0', 'voc/2007:5.0.0', 'test', 'validation'),
        ('voc/2007', 'voc/2007', 'test', 'validation'),
    ],
)
def test_suite_names(text, name, eval_split, validation_split):
    spec = resolve_dataset(text, '/prepared')
    fields = {'source': 'tfds', 'name': name, 'path': '/prepared', 'split': 'train', 'eval_split': eval_split}
    assert spec.data_fields() == fields
    assert spec.validation_split == validation_split
    assert spec.member in TRANSFER_SUITE


@needs_data
def test_a_resolved_set_loads_and_its_size_is_compared(tfds):
    spec = resolve_dataset('cifar10', str(TFDS))
    data = base_config().data
    data.update(spec.data_fields())
    test = load_examples(data, data.eval_split)
    assert spec.metric(test) == 'top1'
    assert spec.size_difference(50_000, test.size) == ''
    message = spec.size_difference(50_000, 9_999)
    assert 'cifar10 has 50,000 training and 9,999 test images, in the paper 50,000 and 10,000' in message


# Other data sets of TFDS.


@needs_data
def test_any_set_of_tfds_by_its_name(tfds):
    """fashion_mnist has train and test, imagenet2012 train and validation."""
    fashion = resolve_dataset('fashion_mnist', str(TFDS))
    assert fashion == DatasetSpec('tfds', 'fashion_mnist', str(TFDS), 'train', 'test', '')
    assert fashion.size_difference(1, 2) == ''
    imagenet = resolve_dataset('imagenet2012:5.1.0', str(TFDS))
    assert imagenet == DatasetSpec('tfds', 'imagenet2012:5.1.0', str(TFDS), 'train', 'validation', '')


def test_unknown_and_unprepared_names_the_nearest_and_the_cure(tfds, tmp_path):
    with pytest.raises(DataError, match=r"data set 'fod101': .*not found.* experiments have food101; .*folder:PATH"):
        resolve_dataset('fod101', str(tmp_path))
    with pytest.raises(DataError, match=r"data set 'mnist': datasets=mnist is not prepared in .* build mnist"):
        resolve_dataset('mnist', str(tmp_path))
    with pytest.raises(DataError, match=r"data set '/no/such/folder': .*folder:PATH"):
        resolve_dataset('/no/such/folder', str(tmp_path))


def test_a_set_without_a_split_to_test_names_its_splits(tfds, tmp_path):
    prepare(tfds, 'only_train', tmp_path, ['train', 'extra'])
    with pytest.raises(DataError, match=r"'only_train' must have the splits train and test .* there are: .*extra"):
        resolve_dataset('only_train', str(tmp_path))


def test_aircraft_is_brought_by_the_user(tfds, tmp_path):
    with pytest.raises(DataError, match=r"aircraft cannot be prepared .*folder:PATH/aircraft; .* 'fgvc_aircraft'"):
        resolve_dataset('aircraft', str(tmp_path))
    prepare(tfds, 'fgvc_aircraft', tmp_path, ['train', 'validation', 'test'])
    spec = resolve_dataset('aircraft', str(tmp_path))
    assert spec.data_fields()['name'] == 'fgvc_aircraft'
    assert (spec.validation_split, spec.member) == ('validation', MEMBERS['aircraft'])


def prepare(tfds, dataset, data_dir, splits):
    """A TFDS data set of one image a split, as a user's own builder prepares it."""

    class Own(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            features = {'image': tfds.features.Image(), 'label': tfds.features.ClassLabel(num_classes=2)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in splits}

        def _generate_examples(self):
            yield 0, {'image': np.zeros((4, 4, 3), np.uint8), 'label': 1}

    Own(data_dir=data_dir).download_and_prepare()


# Folders and arrays.


def make_folder(root, splits):
    for split in splits:
        for class_name in ('ant', 'bee'):
            path = root / split / class_name
            path.mkdir(parents=True)
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path / '0.png')
    return root


@pytest.mark.parametrize(
    'there, eval_split, validation_split',
    [
        (('train', 'test'), 'test', ''),
        (('train', 'val'), 'val', ''),
        (('train', 'validation'), 'validation', ''),
        (('train', 'val', 'test'), 'test', 'val'),
        (('train', 'valid'), 'valid', ''),
        (('train', 'valid', 'test'), 'test', 'valid'),
        (('train', 'validation', 'test'), 'test', 'validation'),
    ],
)
def test_folders_and_arrays_have_the_splits_that_are_there(tmp_path, there, eval_split, validation_split):
    root = make_folder(tmp_path / 'own', there)
    folder = DatasetSpec('folder', '', str(root), 'train', eval_split, validation_split)
    assert resolve_dataset(str(root)) == resolve_dataset(f'folder:{root}') == folder

    for split in there:
        np.savez(tmp_path / f'own_{split}.npz', image=np.zeros((2, 4, 4, 3), np.uint8), label=np.arange(2))
    path = str(tmp_path / 'own_{split}.npz')
    arrays = DatasetSpec('arrays', '', path, 'train', eval_split, validation_split)
    assert resolve_dataset(path) == arrays

    for spec in (folder, arrays):
        data = base_config().data
        data.update(spec.data_fields())
        assert load_examples(data, spec.eval_split).num_classes == 2


def test_only_what_tfds_has_not_is_known_by_its_folders_name(tmp_path):
    for name in ('aircraft', 'fgvc_aircraft', 'birdsnap', 'flowers'):
        spec = resolve_dataset(str(make_folder(tmp_path / name, ('train', 'val', 'test'))))
        assert spec.validation_split == 'val'
        member = {'birdsnap': MEMBERS['birdsnap'], 'flowers': None}.get(name, MEMBERS['aircraft'])
        assert spec.member == member


def test_folders_and_arrays_without_the_splits_say_what_is_there(tmp_path):
    make_folder(tmp_path, ('train', 'extra'))
    with pytest.raises(DataError, match=r'must have the splits train and test \(or .*\); there are: extra, train'):
        resolve_dataset(f'folder:{tmp_path}')
    with pytest.raises(DataError, match=r"'folder:.*missing': there is no such directory"):
        resolve_dataset(f'folder:{tmp_path}/missing')
    with pytest.raises(DataError, match=r'one file holds one split; write \{split\}'):
        resolve_dataset(str(tmp_path / 'data.npz'))
    with pytest.raises(DataError, match=r'must have the splits train and test .*; there are: none'):
        resolve_dataset(str(tmp_path / 'data_{split}.npz'))


def test_outside_of_the_suite_the_labels_decide_the_metric():
    spec = DatasetSpec('arrays', '', 'own_{split}.npz', 'train', 'test', '')
    images = Decoded(np.zeros((2, 4, 4, 3), np.uint8))
    one, several = np.array([0, 1], np.int32), np.array([[1, 0], [1, 1]], np.int32)
    assert spec.metric(Examples('one', 2, images, one, ('a', 'b'))) == 'top1'
    assert spec.metric(Examples('several', 2, images, several, ('a', 'b'))) == 'map_11_point'
