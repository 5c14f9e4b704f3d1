"""What every evaluator demands of features and labels."""

import numpy as np


def check_features(name, features):
    """Features as float32 [N, F]; ValueError unless they are a non-empty, finite matrix."""
    features = np.asarray(features)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f'{name} has shape {features.shape}: pass non-empty features [examples, width]')
    features = features.astype(np.float32, copy=False)
    if not np.isfinite(features).all():
        raise ValueError(f'{name} holds NaN or infinity: leave those rows out or look for what made them')
    return features


def check_labels(name, labels, num_examples, num_classes):
    """Labels as int32 [N]; ValueError unless they are num_examples integers in 0..num_classes - 1."""
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
    """Several labels an example as int32 [N, K]; ValueError unless they are 1 (present), 0 (absent), -1 (ignored)."""
    targets = np.asarray(targets)
    if targets.shape != (num_examples, num_classes) or not np.isin(targets, (-1, 0, 1)).all():
        raise ValueError(
            f'{name} has shape {targets.shape}: pass 1 (present), 0 (absent) or -1 (ignored) for each of '
            f'{num_examples} features and {num_classes} classes'
        )
    return targets.astype(np.int32)
