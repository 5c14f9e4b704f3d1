"""Parts of a split: chosen images, and as many labelled ones as an experiment may use."""

import dataclasses

import numpy as np

from simclr_jax.config.label_budget import Labels
from simclr_jax.data.spec import DataError, Decoded, Encoded, Examples, Files, Streamed
from simclr_jax.data.subsets import balanced_subset

# The subsets of ImageNet that the papers publish, as TensorFlow Datasets names them.
PUBLISHED_SUBSETS = {'1%': 'imagenet2012_subset/1pct', '10%': 'imagenet2012_subset/10pct'}


def published_subset(name: str, labels: Labels) -> str | None:
    """TFDS' name of the published subset with so many labels; None where there is none.

    Its split 'train' has the labels that all papers use for 1 % and 10 % of ImageNet, so that results compare;
    for everything else `labelled_part` draws them.

    Args:
        name: of the whole data set in TFDS, 'imagenet2012' or 'imagenet2012:5.1.0'.
        labels: how many.

    Source: SimCLR, arXiv 2002.05709, section 6.
    """
    return PUBLISHED_SUBSETS.get(str(labels)) if name.partition(':')[0] == 'imagenet2012' else None


def labelled_part(examples: Examples, labels: Labels, seed: int) -> Examples:
    """The images whose labels may be used, as a split of their own.

    Args:
        examples: a labelled split; streamed only if all of it is asked for.
        labels: how many.
        seed: see `labelled_indices`.

    Raises:
        DataError: it is streamed, unlabelled, or has too few labels of a class.
    """
    if examples.labels is None and labels == Labels():
        return examples
    _check_in_memory(examples)
    try:
        indices = labelled_indices(examples.labels, labels, seed)
    except ValueError as error:
        raise DataError(f'{labels} labels of {examples.name}: {error}') from error
    return examples if len(indices) == examples.size else select(examples, indices)


def labelled_indices(known: np.ndarray, labels: Labels, seed: int) -> np.ndarray:
    """Which examples' labels may be used: equally many of each class, or of several an image simply so many.

    Subsets of one seed are nested: a smaller one lies within every larger one.

    Args:
        known: int [N], or [N, K] of several labels an image; see spec.Examples.
        labels: how many of them.
        seed: non-negative; of another seed the subset is another.

    Returns:
        Sorted int64 indices into `known`; never of an unlabelled example.

    Raises:
        ValueError: nothing is labelled, a class has too few labels, or so many a class are asked where an
            image has several.
    """
    is_multi_label = known.ndim == 2
    labelled = np.flatnonzero((known >= 0).any(axis=1) if is_multi_label else known >= 0)
    if not len(labelled):
        raise ValueError('there are none; take a data set with labels')
    if labels == Labels():
        return labelled
    if not is_multi_label:
        return balanced_subset(known, per_class=labels.per_class, fraction=labels.fraction, seed=seed)
    if labels.fraction is None:
        raise ValueError(f"an image may have several, so that there is no {labels} a class; ask a share, as '10%'")
    size = max(1, round(labels.fraction * len(labelled)))
    return np.sort(np.random.default_rng(seed).permutation(labelled)[:size])


def select(examples: Examples, indices: np.ndarray) -> Examples:
    """The chosen images of a split in memory or of files, as a split of its own; they keep their ids.

    Args:
        examples: the split, not streamed.
        indices: int [M], M >= 1, in 0..N - 1.

    Raises:
        DataError: the split is streamed.
        ValueError: no indices, or outside of the split.
    """
    _check_in_memory(examples)
    indices = np.asarray(indices)
    if not indices.size or indices.min() < 0 or indices.max() >= examples.size:
        raise ValueError(f'indices={indices} must be one or more of 0..{examples.size - 1}, images of {examples.name}')
    content = examples.content
    if isinstance(content, Decoded):
        content = Decoded(content.images[indices])
    elif isinstance(content, Encoded):
        content = Encoded([content.files[index] for index in indices])
    else:
        content = Files([content.paths[index] for index in indices])
    positions = indices.astype(np.int64) if examples.positions is None else examples.positions[indices]
    return dataclasses.replace(
        examples, size=len(indices), content=content, labels=examples.labels[indices], positions=positions
    )


def concatenate(first: Examples, second: Examples) -> Examples:
    """Two splits of a data set as one; images are named after the split that they come from.

    Args:
        first, second: in memory or of files, stored alike, with the same classes.

    Raises:
        DataError: one of them is streamed.
        ValueError: they are not of one data set.
    """
    for part in (first, second):
        _check_in_memory(part)
    if type(first.content) is not type(second.content) or first.class_names != second.class_names:
        raise ValueError(f'{first.name} and {second.name} differ in classes or storage; join splits of one data set')
    kind = type(first.content)
    (field,) = (field.name for field in dataclasses.fields(kind))
    parts = [getattr(part.content, field) for part in (first, second)]
    content = kind(np.concatenate(parts) if kind is Decoded else [*parts[0], *parts[1]])
    return Examples(
        name=f'{first.name} + {second.name}',
        size=first.size + second.size,
        content=content,
        labels=np.concatenate([first.labels, second.labels]),
        class_names=first.class_names,
    )


def _check_in_memory(examples: Examples) -> None:
    if isinstance(examples.content, Streamed):
        raise DataError(
            f'{examples.name} is streamed, and no part of it can be chosen: raise data.memory_limit_gb, or take '
            'a data set that is such a part, as imagenet2012_subset/1pct'
        )
