"""Class-balanced subsets and stratified splits: the same indices for the same labels and seed, everywhere."""

import numpy as np


def balanced_subset(labels, *, per_class: int | None = None, fraction: float | None = None, seed: int):
    """Indices of a random subset with equally many examples of every class.

    Subsets of one seed are nested: a smaller one lies within every larger one. What is drawn of one class
    does not depend on the other classes.

    Args:
        labels: [N] integers; -1 marks unlabelled examples, never drawn.
        per_class: examples a class. Give this or `fraction`.
        fraction: share in (0, 1] of the labelled examples; rounded to equally many a class, at least one.
        seed: non-negative.

    Returns:
        Sorted int64 indices into `labels`.

    Raises:
        ValueError: both or none of per_class and fraction, a value out of range, or a class too small.

    Source: the 1 % and 10 % subsets of SimCLR, arXiv 2002.05709, section 6.
    """
    classes = _members(labels)
    if (per_class is None) == (fraction is None):
        raise ValueError(f'per_class={per_class} and fraction={fraction}: give exactly one of them')
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f'fraction={fraction} must be in (0, 1]; 0.01 is one percent')
        per_class = max(1, round(fraction * sum(map(len, classes.values())) / len(classes)))
    if per_class < 1:
        raise ValueError(f'per_class={per_class} must be at least 1')

    smallest = min(classes, key=lambda label: len(classes[label]))
    if len(classes[smallest]) < per_class:
        raise ValueError(
            f'class {smallest} has {len(classes[smallest])} examples, {per_class} a class are asked: '
            f'ask at most {len(classes[smallest])} a class or leave the class out'
        )
    return np.sort(np.concatenate([_shuffled(classes, c, seed, 0)[:per_class] for c in classes]))


def train_validation_split(labels, fraction: float, seed: int):
    """Splits the labelled examples in two with the same share of every class.

    A class of two or more has at least one example on either side; a single example trains.

    Args:
        labels: [N] integers; -1 marks unlabelled examples, in neither part.
        fraction: share in (0, 1) that goes to validation, rounded in every class.
        seed: non-negative.

    Returns:
        (train, validation): sorted int64 indices into `labels`.

    Raises:
        ValueError: fraction out of range, or nothing left to validate on.
    """
    if not 0 < fraction < 1:
        raise ValueError(f'fraction={fraction} must be between 0 and 1; 0.1 validates on a tenth')
    classes = _members(labels)
    if max(map(len, classes.values())) < 2:
        raise ValueError('every class has a single example, none is left for validation: label more examples')
    train, validation = [], []
    for label, members in classes.items():
        size = min(max(round(fraction * len(members)), 1), len(members) - 1)
        shuffled = _shuffled(classes, label, seed, 1)
        validation.append(shuffled[:size])
        train.append(shuffled[size:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(validation))


def _members(labels):
    """Class -> ascending indices of its examples."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f'labels is {labels.dtype} {labels.shape}: pass integers [examples]')
    classes = np.unique(labels[labels != -1])
    if not len(classes) or classes[0] < 0:
        raise ValueError('labels must be 0, 1, ... or -1 (unlabelled), with at least one labelled example')
    return {int(label): np.flatnonzero(labels == label).astype(np.int64) for label in classes}


def _shuffled(classes, label, seed, purpose):
    # A stream for every class and purpose: subsets stay nested, and a split is independent of a subset.
    return np.random.default_rng((seed, label, purpose)).permutation(classes[label])
