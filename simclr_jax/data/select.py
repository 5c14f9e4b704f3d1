"""Parts of a split: chosen images, and the labelled images that an experiment may use."""

import dataclasses

import numpy as np

from simclr_jax.config.label_budget import Labels
from simclr_jax.data.spec import DataError, Decoded, Encoded, Examples, Files, Packed, Streamed
from simclr_jax.data.subsets import balanced_subset

# Published subsets of ImageNet, by their names in TensorFlow Datasets.
PUBLISHED_SUBSETS = {'1%': 'imagenet2012_subset/1pct', '10%': 'imagenet2012_subset/10pct'}


def published_subset(name: str, labels: Labels) -> str | None:
    """Name in TFDS of the published subset with this label budget, or None where there is none.

    Its split 'train' has the labels that all papers use for 1 % and 10 % of ImageNet, so that results are comparable.
    For all other data sets and budgets, `labelled_part` draws the labels.

    Args:
        name: Name of the whole data set in TFDS, for example 'imagenet2012' or 'imagenet2012:5.1.0'.
        labels: Label budget.

    Source: SimCLR, arXiv 2002.05709, section 6.
    """
    return PUBLISHED_SUBSETS.get(str(labels)) if name.partition(':')[0] == 'imagenet2012' else None


def labelled_part(examples: Examples, labels: Labels, seed: int) -> Examples:
    """The images whose labels may be used, as a split of their own.

    Args:
        examples: Labelled split. It may be streamed only if the budget is all labels.
        labels: Label budget.
        seed: Seed of the draw, see `labelled_indices`.

    Raises:
        DataError: The split is streamed, unlabelled, or has too few labels of a class.
    """
    if examples.labels is None and labels == Labels():
        return examples
    _, known = _in_memory(examples)
    try:
        indices = labelled_indices(known, labels, seed)
    except ValueError as error:
        raise DataError(f'{labels} labels of {examples.name}: {error}') from error
    return examples if len(indices) == examples.size else select(examples, indices)


def labelled_indices(known: np.ndarray, labels: Labels, seed: int) -> np.ndarray:
    """Draws the examples whose labels may be used.

    Single-label data gives equally many examples per class. Multi-label data gives a plain random share. Subsets of one
    seed are nested: a smaller one lies within every larger one.

    Args:
        known: Labels, int [N], or multi-label int [N, K]. See `spec.Examples`.
        labels: Label budget.
        seed: Seed of the draw, non-negative. Another seed gives another subset.

    Returns:
        Sorted int64 indices into `known`, of labelled examples only.

    Raises:
        ValueError: Nothing is labelled, a class has too few labels, or multi-label data is asked for a number of labels
            per class.
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
        raise ValueError(f"an image may have several, so {labels} per class is not defined; ask for a share, as '10%'")
    size = max(1, round(labels.fraction * len(labelled)))
    return np.sort(np.random.default_rng(seed).permutation(labelled)[:size])


def select(examples: Examples, indices: np.ndarray) -> Examples:
    """The chosen images of a split as a split of their own. They keep their ids.

    Args:
        examples: Split in memory or of files, not streamed.
        indices: Indices of the images, int [M], M >= 1, in 0..N - 1.

    Raises:
        DataError: The split is streamed.
        ValueError: There are no indices, or they lie outside of the split.
    """
    content, labels = _in_memory(examples)
    indices = np.asarray(indices)
    if not indices.size or indices.min() < 0 or indices.max() >= examples.size:
        raise ValueError(f'indices={indices} must be one or more of 0..{examples.size - 1}, images of {examples.name}')
    if isinstance(content, Decoded):
        content = Decoded(content.images[indices])
    elif isinstance(content, Encoded):
        content = Encoded([content.files[int(index)] for index in indices])
    elif isinstance(content, Packed):
        content = dataclasses.replace(
            content,
            shard=content.shard[indices],
            start=content.start[indices],
            length=content.length[indices],
            ids=[content.ids[int(index)] for index in indices],
        )
    else:
        content = Files([content.paths[int(index)] for index in indices])
    positions = indices.astype(np.int64) if examples.positions is None else examples.positions[indices]
    return dataclasses.replace(
        examples, size=len(indices), content=content, labels=labels[indices], positions=positions
    )


def concatenate(first: Examples, second: Examples) -> Examples:
    """Joins two splits of a data set. The name of the result names both.

    Args:
        first, second: Splits in memory or of files, stored in the same form, with the same classes.

    Raises:
        DataError: One of the splits is streamed.
        ValueError: The splits differ in classes or storage, so they are not from one data set.
    """
    (first_content, first_labels), (second_content, second_labels) = _in_memory(first), _in_memory(second)
    mismatch = f'{first.name} and {second.name} differ in classes or storage; join splits of one data set'
    if first.class_names != second.class_names:
        raise ValueError(mismatch)
    match first_content, second_content:
        case Decoded(images), Decoded(more_images):
            content = Decoded(np.concatenate([images, more_images]))
        case Encoded(files), Encoded(more_files):
            content = Encoded([*files, *more_files])
        case Files(paths), Files(more_paths):
            content = Files([*paths, *more_paths])
        case Packed(), Packed():
            content = _concatenate_packed(first_content, second_content)
        case _:
            raise ValueError(mismatch)
    return Examples(
        name=f'{first.name} + {second.name}',
        size=first.size + second.size,
        content=content,
        labels=np.concatenate([first_labels, second_labels]),
        class_names=first.class_names,
        max_pixels=first.max_pixels,
    )


def _concatenate_packed(first: Packed, second: Packed) -> Packed:
    return Packed(
        shards=[*first.shards, *second.shards],
        shard=np.concatenate([first.shard, second.shard + len(first.shards)]),
        start=np.concatenate([first.start, second.start]),
        length=np.concatenate([first.length, second.length]),
        ids=[*first.ids, *second.ids],
        digest=f'{first.digest} {second.digest}',
    )


def _in_memory(examples: Examples) -> tuple[Decoded | Encoded | Files | Packed, np.ndarray]:
    """Images and labels of a split that is not streamed."""
    if isinstance(examples.content, Streamed):
        raise DataError(
            f'{examples.name} is streamed, so no part of it can be chosen: {examples.content.cure}, or take '
            'a data set that is such a part, as imagenet2012_subset/1pct'
        )
    assert examples.labels is not None, 'only streamed splits have unread labels'
    return examples.content, examples.labels
