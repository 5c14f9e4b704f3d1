"""Checks of the features and labels that every probe receives."""

import numpy as np


def check_features(name, features):
    """Checks features and converts them to float32.

    Args:
        name: Name of the features in error messages.
        features: [N, F], finite, N and F at least 1.

    Returns:
        [N, F] float32.

    Raises:
        ValueError: The features are not a non-empty matrix, or a value is NaN or infinite.
    """
    features = np.asarray(features)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f'{name} has shape {features.shape}: pass non-empty features [examples, width]')
    features = features.astype(np.float32, copy=False)
    if not np.isfinite(features).all():
        raise ValueError(f'{name} holds NaN or infinity: leave those rows out or look for their cause')
    return features


def check_labels(name, labels, num_examples, num_classes):
    """Checks one label per example and converts the labels to int32.

    Args:
        name: Name of the labels in error messages.
        labels: [num_examples] integers in 0..num_classes - 1.
        num_examples: Number of examples N.
        num_classes: Number of classes K.

    Returns:
        [N] int32.

    Raises:
        ValueError: The shape or type is wrong, or a label lies outside of the classes.
    """
    labels = np.asarray(labels)
    if labels.shape != (num_examples,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f'{name} is {labels.dtype} {labels.shape}: pass one integer for each of {num_examples} features'
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f'{name} lies in {labels.min()}..{labels.max()}, must be in 0..{num_classes - 1}: '
            'leave unlabelled examples (-1) out and set num_classes to the number of classes'
        )
    return labels.astype(np.int32)


def check_targets(name, targets, num_examples, num_classes):
    """Checks several labels per example and converts them to int32.

    Args:
        name: Name of the labels in error messages.
        targets: [num_examples, num_classes] of 1 (present), 0 (absent) and -1 (ignored).
        num_examples: Number of examples N.
        num_classes: Number of classes K.

    Returns:
        [N, K] int32.

    Raises:
        ValueError: The shape is wrong, or an entry is another number.
    """
    targets = np.asarray(targets)
    if targets.shape != (num_examples, num_classes) or not np.isin(targets, (-1, 0, 1)).all():
        raise ValueError(
            f'{name} has shape {targets.shape}: pass 1 (present), 0 (absent) or -1 (ignored) for each of '
            f'{num_examples} features and {num_classes} classes'
        )
    return targets.astype(np.int32)
