"""Intersections over unions against sets of pixels, counted one by one."""

import numpy as np
import pytest

from simclr_jax.metrics.classification import confidence_interval
from simclr_jax.metrics.segmentation import (
    IGNORED,
    confusion_matrix,
    intersection_over_union,
    mean_iou,
    mean_iou_of_weights,
)

CLASSES = 5


def maps(seed, images=6):
    """Predictions and truths of images of several sizes. Class 4 occurs nowhere, a tenth of the pixels is ignored."""
    rng = np.random.default_rng(seed)
    shapes = rng.integers(3, 9, (images, 2))
    truths = [np.where(rng.random(shape) < 0.1, IGNORED, rng.integers(0, CLASSES - 1, shape)) for shape in shapes]
    return [rng.integers(0, CLASSES - 1, shape) for shape in shapes], truths


def counted_by_sets(predictions, truths):
    """The IoU of each class that occurs, by sets of pixels that are named by image and place."""
    found = {}
    for label in range(CLASSES):
        named = [set(), set()]
        for number, (predicted, truth) in enumerate(zip(predictions, truths, strict=True)):
            for place in np.ndindex(truth.shape):
                if truth[place] != IGNORED:
                    for pixels, classes in zip(named, (predicted, truth), strict=True):
                        pixels.update({(number, place)} if classes[place] == label else ())
        if named[0] | named[1]:
            found[label] = len(named[0] & named[1]) / len(named[0] | named[1])
    return found


@pytest.mark.parametrize('seed', range(3))
def test_mean_iou_is_a_count_of_sets(seed):
    predictions, truths = maps(seed)
    confusions = [confusion_matrix(*pair, CLASSES) for pair in zip(predictions, truths, strict=True)]
    expected = counted_by_sets(predictions, truths)
    assert list(expected) == [0, 1, 2, 3]
    ious = intersection_over_union(np.sum(confusions, axis=0))
    np.testing.assert_allclose(ious[:4], list(expected.values()), rtol=1e-15)
    assert np.isnan(ious[4])
    assert mean_iou(confusions) == pytest.approx(np.mean(list(expected.values())), rel=1e-15)


def test_weights_are_repetitions():
    predictions, truths = maps(0)
    confusions = np.array([confusion_matrix(*pair, CLASSES) for pair in zip(predictions, truths, strict=True)])
    weights = np.array([0, 3, 1, 0, 2, 1])
    assert mean_iou(confusions, weights) == pytest.approx(mean_iou(confusions.repeat(weights, axis=0)), rel=1e-15)


def test_a_perfect_prediction_and_one_that_meets_nothing():
    truth = maps(1)[1][0]
    right = np.where(truth == IGNORED, 0, truth)
    assert mean_iou([confusion_matrix(right, truth, CLASSES)]) == 1
    assert mean_iou([confusion_matrix(np.full_like(truth, 4), truth, CLASSES)]) == 0
    assert np.isnan(mean_iou([confusion_matrix(right, np.full_like(truth, IGNORED), CLASSES)]))


def test_the_interval_holds_the_value():
    predictions, truths = maps(2, images=30)
    confusions = [confusion_matrix(*pair, CLASSES) for pair in zip(predictions, truths, strict=True)]
    low, high = confidence_interval(mean_iou_of_weights(confusions), len(confusions), draws=200)
    assert 0 < low < mean_iou(confusions) < high < 1


@pytest.mark.parametrize(
    'predicted, truth, message',
    [
        ([0, 1], [0], 'pass one class of each'),
        ([0, 5], [0, 1], 'predicted holds classes from 0 to 5'),
        ([0, 0], [0, -1], 'truth holds classes from -1 to 0'),
    ],
)
def test_classes_that_are_none(predicted, truth, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(predicted, truth, CLASSES)
