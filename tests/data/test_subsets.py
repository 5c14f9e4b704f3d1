"""Balanced subsets and stratified splits keep their promises for every seed."""

import itertools

import numpy as np
import pytest

from simclr_jax.data.subsets import balanced_subset, train_validation_split

# Classes of 40, 25 and 8 and 27 unlabelled, shuffled.
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, -1], [40, 25, 8, 27]))


@pytest.mark.parametrize('seed', [0, 1, 17])
def test_subset_is_balanced_sorted_and_labelled(seed):
    indices = balanced_subset(LABELS, per_class=8, seed=seed)
    assert indices.dtype == np.int64
    assert (np.diff(indices) > 0).all()
    np.testing.assert_array_equal(np.unique(LABELS[indices], return_counts=True), [[0, 1, 2], [8, 8, 8]])


def test_smaller_subsets_lie_in_larger_ones():
    subsets = [set(balanced_subset(LABELS, per_class=size, seed=3)) for size in range(1, 9)]
    assert all(small < large for small, large in itertools.pairwise(subsets))


def test_seed_decides_and_other_classes_do_not():
    np.testing.assert_array_equal(
        balanced_subset(LABELS, per_class=4, seed=5), balanced_subset(LABELS, per_class=4, seed=5)
    )
    indices = balanced_subset(LABELS, per_class=4, seed=5)
    assert set(indices) != set(balanced_subset(LABELS, per_class=4, seed=6))
    without_last = np.where(LABELS == 2, -1, LABELS)
    np.testing.assert_array_equal(balanced_subset(without_last, per_class=4, seed=5), indices[LABELS[indices] != 2])


@pytest.mark.parametrize('fraction, per_class', [(1e-9, 1), (0.1, 2), (0.3, 7)])
def test_fraction_counts_labelled_examples(fraction, per_class):
    """73 examples are labelled; 0.1 and 0.3 of them are 2.4 and 7.3 a class."""
    np.testing.assert_array_equal(
        balanced_subset(LABELS, fraction=fraction, seed=0),
        balanced_subset(LABELS, per_class=per_class, seed=0),
    )


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'per_class': 9}, 'class 2 has 8 examples, but 9 per class are needed: ask for at most 8'),
        ({'fraction': 1.0}, 'class 2 has 8 examples, but 24 per class are needed'),
        ({'per_class': 0}, 'per_class=0 must be at least 1'),
        ({'fraction': 1.5}, r'fraction=1.5 must be in \(0, 1\]'),
        ({}, 'exactly one'),
        ({'per_class': 1, 'fraction': 0.1}, 'exactly one'),
    ],
)
def test_subset_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        balanced_subset(LABELS, seed=0, **settings)


@pytest.mark.parametrize('labels', [np.array([-1, -1]), np.array([0, -2]), np.array([0.0, 1.0]), np.eye(2, dtype=int)])
def test_labels_must_be_classes(labels):
    with pytest.raises(ValueError, match='labels'):
        balanced_subset(labels, per_class=1, seed=0)


def test_split_is_stratified_and_complete():
    train, validation = train_validation_split(LABELS, 0.2, seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.flatnonzero(LABELS >= 0))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()
    # 0.2 of 40, 25 and 8, rounded.
    np.testing.assert_array_equal(np.bincount(LABELS[validation]), [8, 5, 2])
    again, other = train_validation_split(LABELS, 0.2, 0), train_validation_split(LABELS, 0.2, 1)
    np.testing.assert_array_equal(again[1], validation)
    assert set(other[1]) != set(validation)


@pytest.mark.parametrize('fraction', [0.01, 0.99])
def test_split_leaves_every_class_on_both_sides_and_single_examples_in_training(fraction):
    labels = np.array([0, 0, 1, 1, 1, 1, 2])
    train, validation = train_validation_split(labels, fraction, seed=0)
    assert set(labels[train]) == {0, 1, 2}
    assert set(labels[validation]) == {0, 1}


@pytest.mark.parametrize('fraction', [0.0, 1.0, -0.1])
def test_split_fraction_is_checked(fraction):
    with pytest.raises(ValueError, match='must be between 0 and 1'):
        train_validation_split(LABELS, fraction, seed=0)


def test_split_needs_a_second_example():
    with pytest.raises(ValueError, match='label more examples'):
        train_validation_split(np.array([0, 1, 2]), 0.5, seed=0)
