"""Metrics of semantic segmentation, from counts of pixels: intersections over unions, and their mean.

All counts are integers, and the metrics run in NumPy on the host, in float64.
"""

from collections.abc import Callable

import numpy as np

# Class of a pixel that counts neither in training nor in testing. 255 in the masks of PASCAL VOC.
IGNORED = 255


def confusion_matrix(predicted, truth, num_classes: int) -> np.ndarray:
    """Counts the pixels of each pair of classes.

    Args:
        predicted: Predicted classes, integers from 0 to K - 1, [...].
        truth: True classes, integers from 0 to K - 1 or IGNORED, of the same shape. Ignored pixels are not counted.
        num_classes: Number of classes K.

    Returns:
        int64 [K, K]: rows are true classes, columns are predicted ones.

    Raises:
        ValueError: The shapes differ, or a class is none of these. The message names the cure.

    Example:
        >>> confusion_matrix([[0, 1], [1, 1]], [[0, 0], [1, 255]], 2).tolist()
        [[1, 1], [0, 1]]
    """
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.shape != truth.shape:
        raise ValueError(f'predicted {predicted.shape} and truth {truth.shape}: pass one class of each for each pixel')
    counted = truth != IGNORED
    predicted, truth = predicted[counted].astype(np.int64), truth[counted].astype(np.int64)
    for name, classes in (('predicted', predicted), ('truth', truth)):
        if classes.size and not (classes.min() >= 0 and classes.max() < num_classes):
            raise ValueError(
                f'{name} holds classes from {classes.min()} to {classes.max()}: must be from 0 to {num_classes - 1}; '
                'raise num_classes, or ignore the others'
            )
    pairs = np.bincount(num_classes * truth + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def intersection_over_union(confusion) -> np.ndarray:
    """Intersection over union of each class: pixels in both truth and prediction / pixels in at least one of them.

    Args:
        confusion: Counts [K, K], see `confusion_matrix`, of all images together.

    Returns:
        float64 [K], from 0 to 1. NaN for a class that occurs neither in the truth nor in the prediction.

    Example:
        >>> intersection_over_union([[1, 1], [0, 1]]).tolist()
        [0.5, 0.5]

    Source: Everingham et al., The PASCAL Visual Object Classes Challenge: A Retrospective (IJCV 2015), segmentation.
    """
    return _ratios(*_counts(np.asarray(confusion)))


def mean_iou(confusions, weights=None) -> float:
    """Mean intersection over union of the classes that occur in the truth or the prediction.

    The pixels of all images are counted together, as in PASCAL VOC. It is not the mean over images.

    Args:
        confusions: Counts of each image, [N, K, K], see `confusion_matrix`.
        weights: Weights >= 0 of the images, [N]. An image of weight 2 counts as if it were there twice. None: all 1.

    Returns:
        The mean, from 0 to 1. NaN if no pixel is counted.

    Example:
        >>> mean_iou([[[1, 1], [0, 1]]])
        0.5
    """
    return mean_iou_of_weights(confusions)(np.ones(len(confusions)) if weights is None else np.asarray(weights))


def mean_iou_of_weights(confusions) -> Callable[[np.ndarray], float]:
    """Returns `mean_iou` as a function of the weights, for `classification.confidence_interval`.

    Args:
        confusions: Counts of each image, [N, K, K], see `confusion_matrix`.
    """
    counts = [count.astype(np.float64) for count in _counts(np.asarray(confusions))]

    def statistic(weights: np.ndarray) -> float:
        found = _ratios(*(weights @ count for count in counts))
        defined = found[~np.isnan(found)]
        return float(defined.mean()) if defined.size else np.nan

    return statistic


def _counts(confusions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intersections and unions [..., K] of counts [..., K, K]."""
    both = np.diagonal(confusions, axis1=-2, axis2=-1)
    return both, confusions.sum(-1) + confusions.sum(-2) - both


def _ratios(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    return np.divide(intersection, union, where=union > 0, out=np.full(union.shape, np.nan))
