"""The images of a training and the labels that it may read."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from simclr_jax.config.label_budget import Labels
from simclr_jax.data.select import labelled_indices, labelled_part, published_subset
from simclr_jax.data.sources import align_classes, load_examples
from simclr_jax.data.spec import DataError, Examples


def with_label_budget(
    examples: Examples, data: ConfigDict, labels: Labels, *, only_labelled: bool, seed: int
) -> Examples:
    """A split with the labels of a budget. The labels of all other images become -1, or these images are left out.

    Args:
        examples: Split. Its labels must have been read for a budget of less than all labels.
        data: Group `data` of the configuration, which says where the images are.
        labels: Label budget.
        only_labelled: Whether images without a label of the budget are left out.
        seed: Seed of the draw, the same as in `simclr evaluate`.

    Raises:
        DataError: The split is streamed or unlabelled, or a class has too few labels.
    """
    if only_labelled:
        published = published_subset(data.name, labels) if data.source == 'tfds' else None
        if published is None:
            return labelled_part(examples, labels, seed)
        source = data.copy_and_resolve_references()
        source.name = published
        return align_classes(load_examples(source, 'train'), examples)
    if labels == Labels():
        return examples
    if examples.labels is None:
        raise DataError(
            f'distill.labels={labels}: {examples.name} is streamed, its labels are not known before it is read; set '
            'distill.alpha=1, which reads no labels, or distill.images=labelled'
        )
    try:
        chosen = labelled_indices(examples.labels, labels, seed)
    except ValueError as error:
        raise DataError(f'{labels} labels of {examples.name}: {error}') from error
    known = np.full_like(examples.labels, -1)
    known[chosen] = examples.labels[chosen]
    return dataclasses.replace(examples, labels=known)
