"""Parts of a split: the chosen images with their labels and ids, and the labelled part that an experiment gets."""

import itertools

import numpy as np
import pytest

from simclr_jax.config.label_budget import Labels, parse_labels
from simclr_jax.data.select import concatenate, labelled_indices, labelled_part, published_subset, select
from simclr_jax.data.spec import DataError, Decoded, Encoded, Examples, Files, Packed, Streamed
from support.paths import SHARED

TFDS = SHARED / 'data' / 'tfds'
needs_data = pytest.mark.skipif(not TFDS.is_dir(), reason=f'the prepared data sets are not at {TFDS}')

RANDOM = np.random.default_rng(0)
# Classes of 40, 25 and 8 and 27 unlabelled, shuffled.
SIZE = 100
KNOWN = RANDOM.permutation(np.repeat([0, 1, 2, -1], [40, 25, 8, 27])).astype(np.int32)
SEVERAL = RANDOM.integers(-1, 2, size=(SIZE, 4)).astype(np.int32)
SEVERAL[:, 0] = 0
SEVERAL[:10] = -1

CONTENTS = {
    'decoded': Decoded(np.arange(SIZE, dtype=np.uint8)[:, None, None, None] * np.ones((2, 2, 3), np.uint8)),
    'encoded': Encoded([bytes([number]) for number in range(SIZE)]),
    'files': Files([f'folder/{number}.png' for number in range(SIZE)]),
    'packed': Packed(
        ['shard'],
        np.zeros(SIZE, int),
        *np.arange(2 * SIZE).reshape(2, SIZE),
        [f'{number}.jpg' for number in range(SIZE)],
        'x',
    ),
}


def make_examples(content='encoded', known=KNOWN):
    return Examples('data/train', SIZE, CONTENTS[content], known, ('a', 'b', 'c'))


def streamed():
    return Examples(
        'large/train', SIZE, Streamed([SIZE], read=None, parse=None, lanes=1, shuffle_buffer=1), None, ('a', 'b', 'c')
    )


# Which labels may be used.


@pytest.mark.parametrize(
    'text, labels',
    [
        ('all', Labels()),
        ('100%', Labels()),
        ('10', Labels(per_class=10)),
        ('1%', Labels(fraction=0.01)),
        (' 12.5% ', Labels(fraction=0.125)),
    ],
)
def test_labels_are_read_and_written(text, labels):
    assert parse_labels(text) == labels
    assert parse_labels(str(labels)) == labels


@pytest.mark.parametrize('text', ['0', '-1', '1.5', 'x', '', '0%', '101%', '-1%', '%', '1 0', 'nan%', '1e1%', '²'])
def test_labels_that_cannot_be_read_say_what_may_stand(text):
    with pytest.raises(ValueError, match=f"labels '{text}' must be 'all', a whole number above 0 .* as in '1%'"):
        parse_labels(text)


@pytest.mark.parametrize('text, count', [('1', 1), ('8', 8), ('10%', 2)])
def test_part_is_balanced_and_labelled(text, count):
    """73 examples are labelled; a tenth is 2.4 a class."""
    part = labelled_part(make_examples(), parse_labels(text), seed=0)
    np.testing.assert_array_equal(np.unique(part.labels, return_counts=True), [[0, 1, 2], [count] * 3])
    assert part.size == 3 * count
    assert part.class_names == ('a', 'b', 'c')


def test_all_labels_leave_out_the_unlabelled_alone():
    part = labelled_part(make_examples(), Labels(), seed=0)
    np.testing.assert_array_equal(part.labels, KNOWN[KNOWN >= 0])
    assert labelled_part(part, Labels(), seed=0) is part


def test_share_of_several_labels_is_drawn_among_the_labelled():
    """90 images are labelled."""
    indices = labelled_indices(SEVERAL, parse_labels('10%'), seed=0)
    assert len(set(indices)) == 9
    assert indices.min() >= 10
    np.testing.assert_array_equal(labelled_part(make_examples(known=SEVERAL), Labels(), 0).labels, SEVERAL[10:])


@pytest.mark.parametrize(
    'known, texts',
    [(KNOWN, ['1', '3', '20%', '8', 'all']), (SEVERAL, ['0.1%', '1%', '10%', '50%', 'all'])],
    ids=['one label', 'several labels'],
)
def test_smaller_parts_lie_in_larger_ones_and_seeds_differ(known, texts):
    parts = [labelled_indices(known, parse_labels(text), seed=3) for text in texts]
    assert all(set(small) <= set(large) for small, large in itertools.pairwise(parts))
    for text, part in zip(texts[1:-1], parts[1:-1], strict=True):
        np.testing.assert_array_equal(part, labelled_indices(known, parse_labels(text), seed=3))
        assert (np.diff(part) > 0).all()
        assert set(part) != set(labelled_indices(known, parse_labels(text), seed=4))


@pytest.mark.parametrize(
    'examples, text, message',
    [
        (make_examples(), '9', '9 labels of data/train: class 2 has 8 examples, .* ask for at most 8'),
        (make_examples(), '90%', '90% labels of data/train: class 2 has 8 examples'),
        (make_examples(known=np.full(SIZE, -1, np.int32)), 'all', 'all labels of data/train: there are none'),
        (make_examples(known=SEVERAL), '5', "5 labels of .* 5 per class is not defined; ask for a share, as '10%'"),
        (streamed(), '1%', 'large/train is streamed, .* raise data.memory_limit_gb, or .* imagenet2012_subset/1pct'),
    ],
    ids=['class too small', 'share too large', 'unlabelled', 'several labels', 'streamed'],
)
def test_part_that_cannot_be_had_names_the_cure(examples, text, message):
    with pytest.raises(DataError, match=message):
        labelled_part(examples, parse_labels(text), seed=0)


def test_a_streamed_split_is_whole_or_nothing():
    examples = streamed()
    assert labelled_part(examples, Labels(), seed=0) is examples


@pytest.mark.parametrize(
    'name, text, subset',
    [
        ('imagenet2012', '1%', 'imagenet2012_subset/1pct'),
        ('imagenet2012:5.1.0', '10%', 'imagenet2012_subset/10pct'),
        ('imagenet2012', '10', None),
        ('imagenet2012', '5%', None),
        ('imagenet2012', 'all', None),
        ('cifar10', '1%', None),
    ],
)
def test_imagenet_has_published_subsets(name, text, subset):
    assert published_subset(name, parse_labels(text)) == subset


# The chosen images.


@pytest.mark.parametrize('content', CONTENTS)
def test_chosen_images_keep_label_and_id(content):
    examples = make_examples(content)
    indices = np.array([7, 3, 50])
    part = select(examples, indices)
    assert part.size == 3
    np.testing.assert_array_equal(part.labels, KNOWN[indices])
    assert part.ids() == [examples.ids()[index] for index in indices]
    images = {'decoded': 'images', 'encoded': 'files', 'files': 'paths', 'packed': 'start'}[content]
    for chosen, index in zip(getattr(part.content, images), indices, strict=True):
        np.testing.assert_array_equal(chosen, getattr(examples.content, images)[index])
    again = select(part, np.array([2]))
    assert again.ids() == [examples.ids()[50]]


@pytest.mark.parametrize('indices', [[], [-1], [0, SIZE]])
def test_images_that_are_not_there_are_not_chosen(indices):
    with pytest.raises(ValueError, match=r'must be one or more of 0..99, images of data/train'):
        select(make_examples(), np.array(indices, int))


@needs_data
def test_one_percent_of_cifar10_is_fifty_images_a_class_within_ten_percent():
    pytest.importorskip('tensorflow_datasets', reason='the source tfds needs TensorFlow Datasets')
    from simclr_jax.data.tfds import load_tfds

    train = load_tfds('cifar10', 'train', str(TFDS), memory_limit=2**30, shuffle_buffer=1, lanes=64)
    one, ten = (labelled_part(train, parse_labels(text), seed=0) for text in ('1%', '10%'))
    assert (one.size, ten.size) == (500, 5000)
    np.testing.assert_array_equal(np.bincount(one.labels), [50] * 10)
    np.testing.assert_array_equal(np.bincount(ten.labels), [500] * 10)
    assert set(one.ids()) < set(ten.ids()) < set(train.ids())
    place = train.ids().index(one.ids()[0])
    assert one.content.files[0] == train.content.files[place]


@pytest.mark.parametrize('content', CONTENTS)
def test_two_splits_become_one(content):
    examples = make_examples(content)
    parts = [select(examples, indices) for indices in (np.arange(30), np.arange(30, SIZE))]
    joined = concatenate(*parts)
    np.testing.assert_array_equal(joined.labels, examples.labels)
    assert joined.size == SIZE
    if content == 'packed':
        assert joined.ids() == examples.ids()
        assert joined.content.shards == ['shard', 'shard']
        np.testing.assert_array_equal(joined.content.start, examples.content.start)
        return
    for name, value in vars(joined.content).items():
        np.testing.assert_array_equal(value, getattr(examples.content, name))


def test_splits_of_different_data_sets_stay_apart():
    with pytest.raises(ValueError, match='differ in classes or storage'):
        concatenate(make_examples('encoded'), make_examples('decoded'))
