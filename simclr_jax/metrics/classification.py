"""What a test set says of predictions, and how sure it is: accuracies, average precisions, bootstrap intervals.

Every metric takes weights of the images, with which an image of weight 2 counts as if it were there twice:
`confidence_interval` draws such weights. NumPy on the host, float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


def top1(predicted, labels, weights=None) -> float:
    """Weighted fraction of the images whose class is predicted.

    Args:
        predicted: [N] integers.
        labels: [N] integers >= 0.
        weights: [N], >= 0 and not all 0; None: all 1.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: an argument breaks a rule above; the message names the cure.
    """
    correct, _, weights = _check_classes(predicted, labels, weights)
    return float(np.average(correct, weights=weights))


def mean_per_class(predicted, labels, weights=None) -> float:
    """Mean over classes of the fraction of their images that are predicted right: balanced accuracy.

    A class without an image of positive weight is left out of the mean.

    Args:
        predicted, labels, weights: see `top1`.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: see `top1`.

    Source: SimCLR, arXiv 2002.05709, appendix B.8 (Aircraft, Pets, Caltech-101, Flowers).
    """
    correct, labels, weights = _check_classes(predicted, labels, weights)
    images = np.bincount(labels, weights)
    found = np.bincount(labels, weights * correct)
    occurs = images > 0
    return float(np.mean(found[occurs] / images[occurs]))


def average_precision(scores, targets, weights=None) -> float:
    """Sum over thresholds of the precision times the increment of the recall, without interpolation.

    Images of equal score pass a threshold together. This is scikit-learn's definition.

    Args:
        scores: [N], finite; the higher, the more likely the class.
        targets: [N] of 1 (positive), 0 (negative) and -1 (the image is ignored).
        weights: [N], >= 0 and not all 0; None: all 1.

    Returns:
        From 0 to 1; NaN where no positive has a weight.

    Raises:
        ValueError: an argument breaks a rule above; the message names the cure.
    """
    return _average_precision_of_one(scores, targets, weights, eleven_point=False)


def eleven_point_average_precision(scores, targets, weights=None) -> float:
    """Mean over the recalls 0, 0.1 ... 1 of the largest precision at that recall or a higher one.

    As in the development kit of PASCAL VOC 2007, images are ranked one at a time. The kit leaves the order of
    equal scores to its sort, which keeps the images' order: so does this. A recall of exactly three tenths
    reaches 0.3 here; in the kit, whose threshold is 3 x 0.1 in binary, it does not.

    Args:
        scores, targets, weights: see `average_precision`.

    Returns:
        From 0 to 1; NaN where no positive has a weight.

    Raises:
        ValueError: see `average_precision`.

    Source: Everingham et al., The PASCAL Visual Object Classes Challenge (IJCV 2010), evaluation of classification.
    """
    return _average_precision_of_one(scores, targets, weights, eleven_point=True)


def mean_average_precision(scores, targets, weights=None, *, eleven_point: bool = False) -> float:
    """Mean of the average precision over the classes that have a positive.

    Args:
        scores: [N, K], finite; each class ranks the images by its own column.
        targets: [N, K] of 1 (positive), 0 (negative) and -1 (the image is ignored for this class).
        weights: [N], >= 0 and not all 0; None: all 1.
        eleven_point: whether the classes' metric is `eleven_point_average_precision`.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: an argument breaks a rule above, or no class has a positive.
    """
    statistic = mean_average_precision_of_weights(scores, targets, eleven_point=eleven_point)
    value = statistic(_check_weights(weights, len(scores)))
    if np.isnan(value):
        raise ValueError(f'targets {np.shape(targets)} hold no positive (1) of positive weight in any class')
    return value


def mean_average_precision_of_weights(scores, targets, *, eleven_point: bool = False) -> Callable[[np.ndarray], float]:
    """`mean_average_precision` as a function of the weights: images are ranked once, for `confidence_interval`.

    Args:
        scores, targets, eleven_point: see `mean_average_precision`.

    Returns:
        weights [N] -> mean average precision; NaN where no class has a positive with a weight.

    Raises:
        ValueError: see `mean_average_precision`.
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
    """Percentile bootstrap over the images of a test set.

    It answers for the choice of the test images alone: not for that of the training images, nor for the seeds
    of training.

    Args:
        statistic: weights [size] -> value. A weight is how often the draw holds the image. Draws whose value is
            NaN (say, without a positive) are left out.
        size: number of test images. With one image all draws are alike, and the interval has no width.
        draws: how many times `size` images are drawn with replacement.
        level: share of the draws inside the interval, in (0, 1).
        seed: of the draws; the same seed gives the same interval.

    Returns:
        (low, high).

    Raises:
        ValueError: a setting breaks a rule above, or the statistic is NaN for all draws.

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
    """Images of one class, best first, and the threshold at which each of the P positives is retrieved."""

    order: np.ndarray  # [M], images that are not ignored
    positives: np.ndarray  # [P], ranks of the positives
    last_image: np.ndarray  # [P], rank of the last image within the positive's threshold
    last_positive: np.ndarray  # [P], which is the last positive within it


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
    """Average precision of one class; NaN where no positive has a weight."""
    # Recall grows at positives alone, and there lies the largest precision of each recall.
    weights = weights[ranking.order]
    gained = weights[ranking.positives]
    found = np.cumsum(gained)
    if not found.size or found[-1] == 0:
        return np.nan
    retrieved = np.cumsum(weights)[ranking.last_image]
    # Nothing is retrieved as long as all weights are 0.
    precision = np.divide(found[ranking.last_positive], retrieved, where=retrieved > 0, out=np.zeros_like(retrieved))
    if not eleven_point:
        return np.average(precision, weights=gained)
    from_here_on = np.maximum.accumulate(precision[::-1])[::-1]
    # In tenths of the positives: whole numbers, which are compared without rounding.
    return from_here_on[np.searchsorted(10 * found, np.arange(11) * found[-1])].mean()


def _average_precision_of_one(scores, targets, weights, eleven_point: bool) -> float:
    scores, targets = _check_scores(scores, targets, dimensions=1)
    weights = _check_weights(weights, len(scores))
    return float(_area(_rank(scores, targets, eleven_point), weights, eleven_point))


def _check_classes(predicted, labels, weights):
    """Whether each image is predicted right [N], the labels [N] and the weights [N]."""
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    for name, classes in (('predicted', predicted), ('labels', labels)):
        if classes.ndim != 1 or not classes.size or not np.issubdtype(classes.dtype, np.integer):
            raise ValueError(f'{name} is {classes.dtype} {classes.shape}: pass one integer for each image')
    if len(predicted) != len(labels):
        raise ValueError(f'{len(predicted)} predicted classes and {len(labels)} labels: pass one of each an image')
    if labels.min() < 0:
        raise ValueError(f'labels hold {labels.min()}, must be 0 or more: leave unlabelled images (-1) out')
    return predicted == labels, labels, _check_weights(weights, len(labels))


def _check_scores(scores, targets, *, dimensions: int):
    """Scores as float64 and targets, [N] or [N, K]."""
    scores, targets = np.asarray(scores, np.float64), np.asarray(targets)
    shape = '[images]' if dimensions == 1 else '[images, classes]'
    if scores.ndim != dimensions or not scores.size or scores.shape != targets.shape:
        raise ValueError(f'scores {scores.shape} and targets {targets.shape} must both be {shape} and not empty')
    if not np.isfinite(scores).all():
        raise ValueError('scores hold NaN or infinity, which have no rank: look for what made them')
    if not np.isin(targets, (-1, 0, 1)).all():
        raise ValueError('targets must be 1 (positive), 0 (negative) or -1 (ignored): make them so, class by class')
    return scores, targets.astype(np.int8)


def _check_weights(weights, size: int) -> np.ndarray:
    if weights is None:
        return np.ones(size)
    weights = np.asarray(weights, np.float64)
    if weights.shape != (size,) or not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise ValueError(f'weights {weights.shape} must be {size} finite numbers, none negative and not all 0')
    return weights
