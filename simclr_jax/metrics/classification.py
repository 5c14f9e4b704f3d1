"""Metrics of predictions on a test set: accuracies, average precisions and their bootstrap intervals.

Every metric takes weights of the images. An image of weight 2 counts as if it were in the test set twice.
`confidence_interval` draws such weights. All metrics run in NumPy on the host, in float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


def top1(predicted, labels, weights=None) -> float:
    """Weighted share of the images whose class is predicted correctly.

    Args:
        predicted: Predicted classes, integers [N].
        labels: True classes, integers >= 0, [N].
        weights: Weights >= 0 of the images, [N], not all 0. None: all 1.

    Returns:
        The share, from 0 to 1.

    Raises:
        ValueError: An argument breaks a rule above. The message names the cure.

    Example:
        >>> top1([0, 1, 1, 2], [0, 1, 2, 2])
        0.75
    """
    correct, _, weights = _check_classes(predicted, labels, weights)
    return float(np.average(correct, weights=weights))


def mean_per_class(predicted, labels, weights=None) -> float:
    """Mean over the classes of the share of their images that are predicted correctly (balanced accuracy).

    A class without an image of positive weight is left out of the mean.

    Args:
        predicted: Predicted classes, integers [N].
        labels: True classes, integers >= 0, [N].
        weights: Weights >= 0 of the images, [N], not all 0. None: all 1.

    Returns:
        The mean, from 0 to 1.

    Raises:
        ValueError: An argument breaks a rule above. The message names the cure.

    Example:
        Three of four images are right, but only half of class 1.

        >>> mean_per_class([0, 0, 1, 0], [0, 0, 1, 1])
        0.75

    Source: SimCLR, arXiv 2002.05709, appendix B.8 (Aircraft, Pets, Caltech-101, Flowers).
    """
    correct, labels, weights = _check_classes(predicted, labels, weights)
    images = np.bincount(labels, weights)
    found = np.bincount(labels, weights * correct)
    occurs = images > 0
    return float(np.mean(found[occurs] / images[occurs]))


def average_precision(scores, targets, weights=None) -> float:
    """Average precision: sum over thresholds of the precision times the increment of the recall.

    There is no interpolation. Images of equal score pass a threshold together. This is scikit-learn's definition.

    Args:
        scores: Finite scores [N]. A higher score means a more likely member of the class.
        targets: Labels [N]: 1 (positive), 0 (negative) or -1 (the image is ignored).
        weights: Weights >= 0 of the images, [N], not all 0. None: all 1.

    Returns:
        The average precision, from 0 to 1. NaN if no positive has a positive weight.

    Raises:
        ValueError: An argument breaks a rule above. The message names the cure.

    Example:
        The positives have ranks 1 and 3, with precisions 1 and 2 / 3.

        >>> round(average_precision([0.9, 0.8, 0.7], [1, 0, 1]), 4)
        0.8333
    """
    return _average_precision_of_one(scores, targets, weights, eleven_point=False)


def eleven_point_average_precision(scores, targets, weights=None) -> float:
    """Mean over the recalls 0, 0.1 ... 1 of the largest precision at that recall or a higher one.

    As in the development kit of PASCAL VOC 2007, every image has its own rank. Images of equal score keep their order,
    as in the sort of the kit. One detail differs: a recall of exactly three tenths reaches 0.3 here. It does not in
    the kit, because the kit's threshold 3 x 0.1 is slightly larger in binary.

    Args:
        scores: Finite scores [N]. A higher score means a more likely member of the class.
        targets: Labels [N]: 1 (positive), 0 (negative) or -1 (the image is ignored).
        weights: Weights >= 0 of the images, [N], not all 0. None: all 1.

    Returns:
        The mean precision, from 0 to 1. NaN if no positive has a positive weight.

    Raises:
        ValueError: An argument breaks a rule above. The message names the cure.

    Source: Everingham et al., The PASCAL Visual Object Classes Challenge (IJCV 2010), evaluation of classification.
    """
    return _average_precision_of_one(scores, targets, weights, eleven_point=True)


def mean_average_precision(scores, targets, weights=None, *, eleven_point: bool = False) -> float:
    """Mean of the average precision over the classes that have a positive.

    Args:
        scores: Finite scores [N, K]. Each class ranks the images by its own column.
        targets: Labels [N, K]: 1 (positive), 0 (negative) or -1 (the image is ignored for this class).
        weights: Weights >= 0 of the images, [N], not all 0. None: all 1.
        eleven_point: Whether to use `eleven_point_average_precision` for the classes.

    Returns:
        The mean, from 0 to 1.

    Raises:
        ValueError: An argument breaks a rule above, or no class has a positive image of positive weight.
    """
    statistic = mean_average_precision_of_weights(scores, targets, eleven_point=eleven_point)
    value = statistic(_check_weights(weights, len(scores)))
    if np.isnan(value):
        raise ValueError(f'targets {np.shape(targets)} hold no positive (1) of positive weight in any class')
    return value


def mean_average_precision_of_weights(scores, targets, *, eleven_point: bool = False) -> Callable[[np.ndarray], float]:
    """Returns `mean_average_precision` as a function of the weights, for `confidence_interval`.

    The images are ranked only once, which makes many evaluations fast.

    Args:
        scores: Finite scores [N, K]. Each class ranks the images by its own column.
        targets: Labels [N, K]: 1 (positive), 0 (negative) or -1 (the image is ignored for this class).
        eleven_point: Whether to use `eleven_point_average_precision` for the classes.

    Returns:
        A function from weights [N] to the mean average precision. The result is NaN if no class has a positive image
        of positive weight.

    Raises:
        ValueError: An argument breaks a rule above. The message names the cure.
    """
    scores, targets = _check_scores(scores, targets, dimensions=2)
    rankings = [_rank(*column, eleven_point) for column in zip(scores.T, targets.T, strict=True)]

    def statistic(weights):
        values = np.array([_area(ranking, weights, eleven_point) for ranking in rankings])
        defined = values[~np.isnan(values)]
        return float(defined.mean()) if defined.size else np.nan

    return statistic


def confidence_interval(
    statistic: Callable[[np.ndarray], float], size: int, *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Confidence interval by the percentile bootstrap over the images of a test set.

    The interval covers only the random choice of the test images. It covers neither the choice of the training images
    nor the seeds of the training.

    Args:
        statistic: Function from weights [size] to a value. The weight of an image is its count in the draw. Draws
            with the value NaN (for example without a positive) are left out.
        size: Number of test images, at least 1. With one image all draws are equal and the interval has no width.
        draws: Number of draws, at least 1. A draw takes `size` images with replacement.
        level: Share of the draws inside of the interval, in (0, 1).
        seed: Seed of the draws. The same seed gives the same interval.

    Returns:
        Lower and upper end of the interval.

    Raises:
        ValueError: A setting breaks a rule above, or the statistic is NaN for all draws.

    Example:
        >>> correct = np.arange(100) < 80
        >>> low, high = confidence_interval(lambda weights: np.average(correct, weights=weights), 100)
        >>> low < 0.8 < high
        True

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    if size < 1 or draws < 1:
        raise ValueError(f'size={size} and draws={draws} must be at least 1; 1000 draws are usual')
    if not 0 < level < 1:
        raise ValueError(f'level={level} must be between 0 and 1; 0.95 is usual')
    generator = np.random.default_rng(seed)
    drawn = (np.bincount(generator.integers(0, size, size), minlength=size) for _ in range(draws))
    values = np.array([statistic(counts.astype(np.float64)) for counts in drawn])
    values = values[~np.isnan(values)]
    if not values.size:
        raise ValueError(f'the statistic is NaN for all {draws} draws of {size} images: it needs other images')
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class _Ranking(NamedTuple):
    """Ranking of the M images of one class, best first, and the threshold at which each of the P positives is found."""

    order: np.ndarray  # [M], indices of the images that are not ignored
    positives: np.ndarray  # [P], ranks of the positives
    last_image: np.ndarray  # [P], rank of the last image within the positive's threshold
    last_positive: np.ndarray  # [P], number of the last positive within this threshold


def _rank(scores: np.ndarray, targets: np.ndarray, one_at_a_time: bool) -> _Ranking:
    counted = np.flatnonzero(targets >= 0)
    order = counted[np.argsort(-scores[counted], kind='stable')]
    positives = np.flatnonzero(targets[order] == 1)
    if one_at_a_time:
        return _Ranking(order, positives, positives, np.arange(len(positives)))
    ascending = -scores[order]
    last_image = np.searchsorted(ascending, ascending[positives], side='right') - 1
    return _Ranking(order, positives, last_image, np.searchsorted(positives, last_image, side='right') - 1)


def _area(ranking: _Ranking, weights: np.ndarray, eleven_point: bool) -> float:
    """Average precision of one class. NaN if no positive has a positive weight."""
    # The recall grows only at positives. The largest precision of each recall is there as well.
    weights = weights[ranking.order]
    gained = weights[ranking.positives]
    found = np.cumsum(gained)
    if not found.size or found[-1] == 0:
        return np.nan
    retrieved = np.cumsum(weights)[ranking.last_image]
    # As long as all weights are 0, no image is retrieved and the precision is undefined.
    precision = np.divide(found[ranking.last_positive], retrieved, where=retrieved > 0, out=np.zeros_like(retrieved))
    if not eleven_point:
        return np.average(precision, weights=gained)
    from_here_on = np.maximum.accumulate(precision[::-1])[::-1]
    # Ten times the recalls of integer weights are integers, which compare without rounding.
    return from_here_on[np.searchsorted(10 * found, np.arange(11) * found[-1])].mean()


def _average_precision_of_one(scores, targets, weights, eleven_point: bool) -> float:
    scores, targets = _check_scores(scores, targets, dimensions=1)
    weights = _check_weights(weights, len(scores))
    return float(_area(_rank(scores, targets, eleven_point), weights, eleven_point))


def _check_classes(predicted, labels, weights):
    """Checks the arguments. Returns whether each prediction is correct, the labels and the weights, all [N]."""
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    for name, classes in (('predicted', predicted), ('labels', labels)):
        if classes.ndim != 1 or not classes.size or not np.issubdtype(classes.dtype, np.integer):
            raise ValueError(f'{name} is {classes.dtype} {classes.shape}: pass one integer for each image')
    if len(predicted) != len(labels):
        raise ValueError(f'{len(predicted)} predicted classes and {len(labels)} labels: pass one of each per image')
    if labels.min() < 0:
        raise ValueError(f'labels hold {labels.min()}, but must be 0 or more: leave unlabelled images (-1) out')
    return predicted == labels, labels, _check_weights(weights, len(labels))


def _check_scores(scores, targets, *, dimensions: int):
    """Checks the arguments. Returns the scores as float64 and the targets as int8, both [N] or [N, K]."""
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets)
    shape = '[images]' if dimensions == 1 else '[images, classes]'
    if scores.ndim != dimensions or not scores.size or scores.shape != targets.shape:
        raise ValueError(f'scores {scores.shape} and targets {targets.shape} must both be {shape} and not empty')
    if not np.isfinite(scores).all():
        raise ValueError('scores hold NaN or infinity, which have no rank: find the cause in the classifier')
    if not np.isin(targets, (-1, 0, 1)).all():
        raise ValueError('targets must be 1 (positive), 0 (negative) or -1 (ignored): convert the labels of each class')
    return scores, targets.astype(np.int8)


def _check_weights(weights, size: int) -> np.ndarray:
    if weights is None:
        return np.ones(size)
    weights = np.asarray(weights, np.float64)
    if weights.shape != (size,) or not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise ValueError(f'weights {weights.shape} must be {size} finite numbers, none negative and not all 0')
    return weights
