"""Images that show several classes: [N, K] labels from each source to the batches."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from simclr_jax.data import arrays
from simclr_jax.data.reader import eval_batches
from simclr_jax.data.sources import align_classes, without_multi_labels
from simclr_jax.data.spec import DataError, Decoded, Examples, Files

IMAGES = np.random.default_rng(0).integers(0, 256, size=(5, 9, 8, 3), dtype=np.uint8)
# Present, absent, ignored; all, nothing and unknown.
LABELS = np.array([[1, 0, -1], [0, 0, 1], [1, 1, 1], [0, 0, 0], [-1, -1, -1]], np.int32)
CLASS_NAMES = ('cat', 'dog', 'owl')
EXAMPLES = Examples('five', 5, Decoded(IMAGES), LABELS, CLASS_NAMES)


def test_npz_of_several_labels_an_image(tmp_path):
    np.savez(tmp_path / 'data.npz', image=IMAGES, label=LABELS.astype(np.int8))
    examples = arrays.load_npz(str(tmp_path / 'data.npz'), 'train')
    assert examples.is_multi_label
    assert examples.labels.dtype == np.int32
    assert examples.class_names == ('0', '1', '2')
    np.testing.assert_array_equal(examples.labels, LABELS)


def test_classes_are_aligned_by_name():
    """Of a class that a split does not know it says nothing: -1, not 0."""
    other = Examples('other', 2, Decoded(IMAGES[:2]), np.array([[1, 0], [-1, 1]], np.int32), ('owl', 'cat'))
    aligned = align_classes(other, EXAMPLES)
    assert aligned.class_names == CLASS_NAMES
    np.testing.assert_array_equal(aligned.labels, [[0, -1, 1], [1, -1, -1]])
    with pytest.raises(DataError, match='five has 3 classes, other has 2; unknown there: dog'):
        align_classes(EXAMPLES, other)


def test_one_label_and_several_are_not_mixed():
    single = Examples('single', 2, Decoded(IMAGES[:2]), np.array([0, 1], np.int32), CLASS_NAMES)
    for split, like in ((single, EXAMPLES), (EXAMPLES, single)):
        with pytest.raises(DataError, match='one has several labels an image, the other one label; take two'):
            align_classes(split, like)
    assert without_multi_labels(single) is single
    plain = without_multi_labels(EXAMPLES)
    assert (plain.num_classes, plain.labels.tolist()) == (0, [-1] * 5)


# TensorFlow Datasets.

# What each of three images shows, and what of it is easily seen.
SHOWN = ([0, 2], [], [1, 2])
EASY = ([2], [], [1, 2])
LABEL_FEATURES = {'all': ['labels'], 'easy': ['labels', 'labels_no_difficult'], 'none': []}


@pytest.fixture(scope='module')
def tfds_directory(tmp_path_factory):
    """Of a prepared data set; its configurations have the features of LABEL_FEATURES."""
    tfds = pytest.importorskip('tensorflow_datasets', reason='the source tfds needs TensorFlow Datasets')
    labels = tfds.features.Sequence(tfds.features.ClassLabel(names=CLASS_NAMES))

    class Shown(tfds.core.GeneratorBasedBuilder):
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, version='1.0.0') for name in LABEL_FEATURES]  # noqa: RUF012

        def _info(self):
            features = {'image': tfds.features.Image(), 'objects': tfds.features.Sequence(np.bool_)}
            features |= dict.fromkeys(LABEL_FEATURES[self.builder_config.name], labels)
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {'train': self._generate_examples()}

        def _generate_examples(self):
            for n in range(3):
                row = {'image': IMAGES[n], 'objects': [True] * n, 'labels': SHOWN[n], 'labels_no_difficult': EASY[n]}
                yield n, {name: row[name] for name in self.info.features}

    path = tmp_path_factory.mktemp('tfds')
    for config in LABEL_FEATURES:
        Shown(config=config, data_dir=path).download_and_prepare()
    return str(path)


@pytest.mark.parametrize(
    'name, expected',
    [
        ('shown/all', [[1, 0, 1], [0, 0, 0], [0, 1, 1]]),
        ('shown/easy', [[-1, 0, 1], [0, 0, 0], [0, 1, 1]]),
    ],
)
def test_tfds_of_several_labels_an_image(tfds_directory, name, expected):
    from simclr_jax.data.tfds import load_tfds

    examples = load_tfds(name, 'train', tfds_directory, memory_limit=2**20, shuffle_buffer=1, lanes=64)
    assert examples.is_multi_label
    assert examples.labels.dtype == np.int32
    assert examples.class_names == CLASS_NAMES
    # They are stored in an order of TFDS' own.
    images = [np.array(Image.open(io.BytesIO(file))) for file in examples.content.files]
    for image, label in zip(IMAGES[:3], expected, strict=True):
        place = next(n for n in range(3) if (images[n] == image).all())
        np.testing.assert_array_equal(examples.labels[place], label)
    with pytest.raises(DataError, match=rf'{name}/train has several .* GiB must stay .*: raise data.memory_limit_gb'):
        load_tfds(name, 'train', tfds_directory, memory_limit=0, shuffle_buffer=1, lanes=64)


def test_tfds_without_labels_has_none(tfds_directory):
    from simclr_jax.data import streams
    from simclr_jax.data.tfds import load_tfds

    def load(memory_limit):
        return load_tfds('shown/none', 'train', tfds_directory, memory_limit=memory_limit, shuffle_buffer=1, lanes=64)

    assert load(2**20).labels.tolist() == [-1] * 3
    assert load(2**20).num_classes == load(0).num_classes == 0
    content = load(0).content
    assert [int(content.parse(record)[1]) for _, record in streams.stored_rows(content)] == [-1] * 3


# Batches.


@pytest.fixture
def files(tmp_path):
    """The images as files; the second one is none."""
    paths = [str(tmp_path / f'{n}.png') for n in range(5)]
    for path, image in zip(paths, IMAGES, strict=True):
        Image.fromarray(image).save(path)
    (tmp_path / '1.png').write_bytes(b'text')
    return dataclasses.replace(EXAMPLES, content=Files(paths))


def test_labels_come_with_their_images_to_train(files):
    pytest.importorskip('tensorflow', reason='the host pipeline needs TensorFlow')
    from simclr_jax.augment.policy import make_policy
    from simclr_jax.data.pipeline import TrainBatches

    policy = make_policy(8, views=('flip',))
    for examples in (EXAMPLES, files):
        batches = TrainBatches(examples, policy, batch_size=2, seed=0, max_unreadable=0.2)
        for _ in range(5):
            batch = next(batches)
            assert batch['label'].dtype == np.int32
            np.testing.assert_array_equal(batch['label'], LABELS[batch['index']])


def test_padding_and_unreadable_files_have_no_labels_to_evaluate(files):
    labels = np.concatenate([batch['label'] for batch in eval_batches(files, 8, batch_size=4)])
    readable = np.delete(LABELS, 1, axis=0)
    np.testing.assert_array_equal(labels, np.concatenate([readable, np.full((8 - len(readable), 3), -1)]))
