"""Metrics against scikit-learn, the VOC 2007 development kit's loop and known answers; intervals by simulation."""

import fractions
import time

import numpy as np
import pytest
from sklearn import metrics as reference

from simclr_jax.metrics.classification import (
    average_precision,
    confidence_interval,
    eleven_point_average_precision,
    mean_average_precision,
    mean_average_precision_of_weights,
    mean_per_class,
    top1,
)


def interval_of_mean(values, **settings):
    return confidence_interval(lambda weights: np.average(values, weights=weights), len(values), **settings)


AVERAGE_PRECISIONS = (average_precision, eleven_point_average_precision)


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def random_classes(generator, size=300, num_classes=7):
    labels = generator.integers(0, num_classes, size)
    wrong = generator.integers(0, num_classes, size)
    return np.where(generator.random(size) < 0.6, labels, wrong), labels


def random_ranking(generator, size=200, levels=None):
    """Scores that tell something of the targets; with `levels`, rounded so that many are equal."""
    targets = (generator.random(size) < 0.3).astype(int)
    scores = targets + generator.normal(size=size)
    return (scores if levels is None else np.round(scores * levels) / levels), targets


def development_kit(scores, targets):
    """The eleven-point loop over images ranked one at a time, in exact fractions."""
    ranked = targets[sorted(range(len(scores)), key=lambda image: -scores[image])]
    precisions, recalls, found = [], [], 0
    for rank, target in enumerate(ranked.tolist(), 1):
        found += target
        precisions.append(fractions.Fraction(found, rank))
        recalls.append(fractions.Fraction(found, int(targets.sum())))
    total = fractions.Fraction(0)
    for tenth in range(11):
        reached = [p for p, r in zip(precisions, recalls, strict=True) if r >= fractions.Fraction(tenth, 10)]
        total += max(reached, default=0)
    return float(total / 11)


@pytest.mark.parametrize('weighted', [False, True])
def test_accuracies_are_scikit_learns(generator, weighted):
    predicted, labels = random_classes(generator)
    weights = generator.random(len(labels)) if weighted else None
    expected = reference.accuracy_score(labels, predicted, sample_weight=weights)
    np.testing.assert_allclose(top1(predicted, labels, weights), expected, rtol=1e-12)
    expected = reference.balanced_accuracy_score(labels, predicted, sample_weight=weights)
    np.testing.assert_allclose(mean_per_class(predicted, labels, weights), expected, rtol=1e-12)


def test_mean_per_class_leaves_out_classes_that_do_not_occur():
    """Class 1 is predicted but not there, class 3 has no weight: the mean is that of 0 (2/3) and 2 (1)."""
    labels, predicted = np.array([0, 0, 0, 2, 3]), np.array([0, 1, 0, 2, 0])
    weights = np.array([1, 1, 1, 5, 0])
    np.testing.assert_allclose(mean_per_class(predicted, labels, weights), (2 / 3 + 1) / 2)
    occurring = labels[:4]
    expected = reference.recall_score(occurring, predicted[:4], labels=np.unique(occurring), average='macro')
    np.testing.assert_allclose(mean_per_class(predicted[:4], occurring), expected)


@pytest.mark.parametrize('levels', [None, 4, 1])
@pytest.mark.parametrize('weighted', [False, True])
def test_average_precision_is_scikit_learns(generator, levels, weighted):
    """With one score for many images they pass the threshold together."""
    scores, targets = random_ranking(generator, levels=levels)
    weights = generator.random(len(targets)) * (generator.random(len(targets)) < 0.8) if weighted else None
    expected = reference.average_precision_score(targets, scores, sample_weight=weights)
    # Sums of 200 numbers in double precision, in another order.
    np.testing.assert_allclose(average_precision(scores, targets, weights), expected, rtol=1e-12)


@pytest.mark.parametrize('levels', [None, 2])
@pytest.mark.parametrize('positives', [1, 7, 10, 30, 200])
def test_eleven_points_are_those_of_the_development_kit(generator, levels, positives):
    """With 10 or 30 positives the recall falls on the thresholds, where 3 * 0.1 > 0.3 would miss one."""
    targets = (np.arange(200) < positives).astype(int)
    scores = targets + generator.normal(size=200)
    scores = scores if levels is None else np.round(scores * levels) / levels
    order = generator.permutation(200)
    scores, targets = scores[order], targets[order]
    expected = development_kit(scores, targets)
    np.testing.assert_allclose(eleven_point_average_precision(scores, targets), expected, rtol=1e-14)


def test_known_rankings():
    targets = np.array([1, 1, 0, 0])
    perfect, backwards = np.array([4.0, 3.0, 2.0, 1.0]), np.array([1.0, 2.0, 3.0, 4.0])
    for metric in AVERAGE_PRECISIONS:
        assert metric(perfect, targets) == 1
        assert metric(np.array([0.3]), np.array([1])) == 1
        assert np.isnan(metric(perfect, np.zeros(4, int)))
        assert np.isnan(metric(perfect, targets, np.array([0, 0, 1, 1])))
    # Found at ranks 3 and 4: precisions 1/3 and 2/4; the larger one is within reach at every recall.
    np.testing.assert_allclose(average_precision(backwards, targets), (1 / 3 + 1 / 2) / 2)
    np.testing.assert_allclose(eleven_point_average_precision(backwards, targets), 1 / 2)
    # All alike: one threshold with precision 2/4; ranked in their order, the positives come first.
    np.testing.assert_allclose(average_precision(np.ones(4), targets), 1 / 2)
    assert eleven_point_average_precision(np.ones(4), targets) == 1
    # Recalls of 1/2 and 1 with precisions 1 and 2/3: six points of the one, five of the other.
    apart = np.array([4.0, 2.0, 3.0, 1.0])
    np.testing.assert_allclose(eleven_point_average_precision(apart, targets), (6 + 5 * 2 / 3) / 11)


@pytest.mark.parametrize('metric', AVERAGE_PRECISIONS)
def test_ignored_images_might_as_well_not_be_there(generator, metric):
    scores, targets = random_ranking(generator, levels=3)
    ignored = generator.random(len(targets)) < 0.2
    expected = metric(scores[~ignored], targets[~ignored])
    assert metric(scores, np.where(ignored, -1, targets)) == expected


@pytest.mark.parametrize('levels', [None, 3])
@pytest.mark.parametrize('metric', [top1, mean_per_class, *AVERAGE_PRECISIONS])
def test_a_weight_is_a_repetition(generator, metric, levels):
    first, second = random_ranking(generator, levels=levels)
    if metric in (top1, mean_per_class):
        first, second = random_classes(generator)
    counts = generator.integers(0, 4, len(first))
    expected = metric(np.repeat(first, counts), np.repeat(second, counts))
    np.testing.assert_allclose(metric(first, second, counts), expected, rtol=1e-12)


@pytest.mark.parametrize('eleven_point, metric', [(False, average_precision), (True, eleven_point_average_precision)])
def test_mean_average_precision_is_over_classes_with_a_positive(generator, eleven_point, metric):
    columns = [random_ranking(generator, levels=4) for _ in range(4)]
    scores, targets = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
    targets[:, 2] = 0
    targets[::7, 3] = -1
    weights = generator.random(len(scores))
    expected = np.mean([metric(scores[:, c], targets[:, c], weights) for c in (0, 1, 3)])
    found = mean_average_precision(scores, targets, weights, eleven_point=eleven_point)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    ranked_once = mean_average_precision_of_weights(scores, targets, eleven_point=eleven_point)
    assert ranked_once(weights) == found


def test_interval_of_a_mean_covers_the_truth_as_often_as_it_says(generator):
    """95 % within the noise of 400 simulations, 1.1 %, and the percentile bootstrap's own shortfall."""
    truth, size, simulations = 0.7, 100, 400
    covered = 0
    for seed in range(simulations):
        low, high = interval_of_mean(generator.random(size) < truth, draws=200, seed=seed)
        covered += low <= truth <= high
    assert 0.92 <= covered / simulations <= 0.98


@pytest.mark.parametrize('level, deviations', [(0.95, 1.959964), (0.8, 1.281552)])
def test_interval_of_many_images_is_the_normal_one(generator, level, deviations):
    correct = generator.random(5000) < 0.8
    mean = correct.mean()
    half = deviations * np.sqrt(mean * (1 - mean) / 5000)
    low, high = interval_of_mean(correct, draws=2000, level=level)
    # A quantile near 2.5 % of 2000 draws is known to 2.7 % of the width's half; three times that.
    np.testing.assert_allclose([low, high], [mean - half, mean + half], rtol=0, atol=0.1 * half)


def test_interval_of_every_metric_holds_its_value(generator):
    predicted, labels = random_classes(generator)
    columns = [random_ranking(generator, 300) for _ in range(3)]
    scores, targets = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
    statistics = {
        'top1': lambda weights: top1(predicted, labels, weights),
        'mean per class': lambda weights: mean_per_class(predicted, labels, weights),
        'average precision': lambda weights: average_precision(scores[:, 0], targets[:, 0], weights),
        'mean average precision': mean_average_precision_of_weights(scores, targets),
        'eleven points': mean_average_precision_of_weights(scores, targets, eleven_point=True),
    }
    for name, statistic in statistics.items():
        low, high = confidence_interval(statistic, 300, draws=200)
        assert low < statistic(np.ones(300)) < high, name
        assert (low, high) == confidence_interval(statistic, 300, draws=200), name
        assert (low, high) != confidence_interval(statistic, 300, draws=200, seed=1), name
    by_metric = confidence_interval(statistics['top1'], 300, draws=200)
    np.testing.assert_allclose(interval_of_mean(predicted == labels, draws=200), by_metric, rtol=1e-12)


def test_interval_of_one_image_has_no_width_and_draws_without_a_value_are_left_out():
    assert interval_of_mean([1.0], draws=10) == (1, 1)
    # The one positive is missing from 37 % of the draws; in the others it is ranked first.
    scores, targets = np.array([3.0, 2.0, 1.0]), np.array([1, 0, 0])
    assert confidence_interval(lambda weights: average_precision(scores, targets, weights), 3) == (1, 1)


def test_a_thousand_draws_are_cheap(generator):
    """Processor seconds on one core, several times what an idle machine needs."""
    predicted, labels = random_classes(generator, 10_000, 100)
    start = time.process_time()
    confidence_interval(lambda weights: top1(predicted, labels, weights), 10_000)
    assert time.process_time() - start < 1
    scores = generator.normal(size=(5000, 20))
    targets = (generator.random((5000, 20)) < 0.08).astype(int)
    start = time.process_time()
    confidence_interval(mean_average_precision_of_weights(scores, targets, eleven_point=True), 5000)
    assert time.process_time() - start < 10


@pytest.mark.parametrize('metric', [top1, mean_per_class])
@pytest.mark.parametrize(
    'arguments, message',
    [
        (([0, 1], [0, 1, 1]), '2 predicted classes and 3 labels'),
        (([], []), r'predicted is float64 \(0,\)'),
        (([0, 1], [0.0, 1.0]), 'labels is float64'),
        (([0, 1], [0, -1]), 'labels hold -1, but must be 0 or more: leave unlabelled images'),
        (([0, 1], [0, 1], [1]), r'weights \(1,\) must be 2 finite numbers'),
        (([0, 1], [0, 1], [0, 0]), 'not all 0'),
        (([0, 1], [0, 1], [2, -1]), 'none negative'),
    ],
)
def test_mistakes_in_classes_are_named(metric, arguments, message):
    with pytest.raises(ValueError, match=message):
        metric(*arguments)


@pytest.mark.parametrize('metric', AVERAGE_PRECISIONS)
@pytest.mark.parametrize(
    'arguments, message',
    [
        (([0.1, 0.2], [1]), r'scores \(2,\) and targets \(1,\) must both be \[images\]'),
        (([], []), 'not empty'),
        (([[0.1]], [[1]]), r'must both be \[images\]'),
        (([0.1, np.nan], [1, 0]), 'NaN or infinity'),
        (([0.1, np.inf], [1, 0]), 'NaN or infinity'),
        (([0.1, 0.2], [1, 2]), r'1 \(positive\), 0 \(negative\) or -1'),
        (([0.1, 0.2], [1, 0], [1, np.nan]), 'must be 2 finite numbers'),
    ],
)
def test_mistakes_in_rankings_are_named(metric, arguments, message):
    with pytest.raises(ValueError, match=message):
        metric(*arguments)


def test_other_mistakes_are_named():
    with pytest.raises(ValueError, match=r'no positive \(1\) of positive weight in any class'):
        mean_average_precision(np.ones((3, 2)), np.zeros((3, 2), int))
    with pytest.raises(ValueError, match=r'must both be \[images, classes\]'):
        mean_average_precision(np.ones(3), np.ones(3, int))
    with pytest.raises(ValueError, match='level=95 must be between 0 and 1'):
        interval_of_mean([0.0, 1.0], level=95)
    with pytest.raises(ValueError, match='draws=0 must be at least 1'):
        interval_of_mean([0.0, 1.0], draws=0)
    with pytest.raises(ValueError, match='size=0 and draws=1000 must be at least 1'):
        interval_of_mean([])
    with pytest.raises(ValueError, match='NaN for all 5 draws of 4 images'):
        confidence_interval(lambda weights: np.nan, 4, draws=5)
