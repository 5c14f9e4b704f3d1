"""Class-balanced subsets and stratified splits: the same indices for the same labels and seed, everywhere."""

import numpy as np


def balanced_subset(labels, *, per_class: int | None = None, fraction: float | None = None, seed: int):
    """Draws a random subset with equally many examples of every class.

    Subsets of one seed are nested: a smaller one lies within every larger one. The draw within one class does not
    depend on the other classes.

    Args:
        labels: Integers [N]. -1 marks unlabelled examples, which are never drawn.
        per_class: Examples per class. Give this or `fraction`.
        fraction: Share of the labelled examples, in (0, 1]. Rounded to equally many per class, at least one.
        seed: Seed of the draw, non-negative.

    Returns:
        Sorted int64 indices into `labels`.

    Raises:
        ValueError: Both or none of per_class and fraction are given, a value is out of range, or a class is too small.

    Source: the 1 % and 10 % subsets of SimCLR, arXiv 2002.05709, section 6.
    """
    classes = _members(labels)
    if (per_class is None) == (fraction is None):
        raise ValueError(f'per_class={per_class} and fraction={fraction}: give exactly one of them')
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f'fraction={fraction} must be in (0, 1]; 0.01 is one percent')
        per_class = max(1, round(fraction * sum(map(len, classes.values())) / len(classes)))
    assert per_class is not None, 'one of the two is given'
    if per_class < 1:
        raise ValueError(f'per_class={per_class} must be at least 1')

    smallest = min(classes, key=lambda label: len(classes[label]))
    if len(classes[smallest]) < per_class:
        raise ValueError(
            f'class {smallest} has {len(classes[smallest])} examples, but {per_class} per class are needed: '
            f'ask for at most {len(classes[smallest])} per class, or leave the class out'
        )
    return np.sort(np.concatenate([_shuffled(classes, c, seed, 0)[:per_class] for c in classes]))


def train_validation_split(labels, fraction: float, seed: int):
    """Splits the labelled examples into two parts with the same share of every class.

    A class with at least two examples has at least one in each part. The only example of a class is for training.

    Args:
        labels: Integers [N]. -1 marks unlabelled examples, which are in neither part.
        fraction: Share for validation, in (0, 1), rounded within every class.
        seed: Seed of the split, non-negative.

    Returns:
        (train, validation): sorted int64 indices into `labels`.

    Raises:
        ValueError: The fraction is out of range, or nothing is left for validation.
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
    """Maps each class to the ascending indices of its examples."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f'labels is {labels.dtype} {labels.shape}: pass integers [examples]')
    classes = np.unique(labels[labels != -1])
    if not len(classes) or classes[0] < 0:
        raise ValueError('labels must be 0, 1, ... or -1 (unlabelled), with at least one labelled example')
    return {int(label): np.flatnonzero(labels == label).astype(np.int64) for label in classes}


def _shuffled(classes, label, seed, purpose):
    # Each class and purpose has its own random stream: subsets stay nested, and splits are independent of subsets.
    return np.random.default_rng((seed, label, purpose)).permutation(classes[label])
