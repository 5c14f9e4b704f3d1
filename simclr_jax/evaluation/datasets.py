"""The data sets that an encoder is measured on: splits to learn from, to choose settings on, and to test on."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from simclr_jax.config.label_budget import Labels
from simclr_jax.data.select import concatenate, labelled_part, published_subset, select
from simclr_jax.data.sources import align_classes, load_examples
from simclr_jax.data.spec import DataError, Examples
from simclr_jax.data.subsets import train_validation_split
from simclr_jax.data.suite import resolve_dataset
from simclr_jax.evaluation.embed import open_split


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set with its splits.

    Attributes:
        name: Name in the results.
        data: Group `data` of a configuration, which says where the images are.
        train: Split to learn from. It does not contain `validation`.
        validation: Split to choose settings on. The final classifier learns from it too. None if the data set has no
            such split.
        test: Split to test on.
        metric: 'top1', 'mean_per_class' or 'map_11_point'.
        remark: Differences from the data set of the paper. '' if there are none.
    """

    name: str
    data: ConfigDict
    train: Examples
    validation: Examples | None
    test: Examples
    metric: str
    remark: str = ''

    @property
    def num_classes(self) -> int:
        """Number of classes K, or 0 without labels."""
        return self.train.num_classes

    @property
    def description(self) -> str:
        """The splits with their sizes."""
        if self.train is self.test:
            return f'{self.test.name} ({self.test.size:,})'
        learnt = [part for part in (self.train, self.validation) if part is not None]
        sources = ' and '.join(f'{part.name} ({part.size:,})' for part in learnt)
        return f'{sources} -> {self.test.name} ({self.test.size:,})'

    @property
    def notes(self) -> list[str]:
        """Lines for the user about the splits."""
        parts = [part for part in (self.train, self.validation, self.test) if part is not None]
        return list(dict.fromkeys(note for part in parts for note in part.notes))

    def published(self, labels: Labels) -> 'Dataset | None':
        """This data set with a published subset in place of `train`. None if no subset has this label budget."""
        name = published_subset(self.data.name, labels) if self.data.source == 'tfds' else None
        if name is None:
            return None
        data = self.data.copy_and_resolve_references()
        data.name = name
        return dataclasses.replace(self, data=data, train=align_classes(load_examples(data, 'train'), self.train))

    def learnt_with(self, labels: Labels, seed: int) -> Examples:
        """The images to learn from within a label budget, including those of a validation split.

        Args:
            labels: Label budget.
            seed: Seed of the draw of the labels, where no published subset has this budget.
        """
        published = self.published(labels)
        if published is not None:
            return published.train
        everything = self.train if self.validation is None else concatenate(self.train, self.validation)
        return labelled_part(everything, labels, seed)

    def divided(self, labels: Labels, share: float, seed: int) -> tuple[Examples, Examples]:
        """The images of `learnt_with` as two splits: one to learn from, and one to choose settings on.

        With all labels, these are `train` and `validation` where the data set has both.

        Args:
            labels: Label budget.
            share: Share of the images that becomes the second split, in (0, 1).
            seed: Seed of the draw of the labels and of the division.
        """
        if self.validation is not None and labels == Labels():
            return self.train, self.validation
        learnt = self.learnt_with(labels, seed)
        assert learnt.labels is not None, 'only streamed splits have unread labels'
        kept, held_out = hold_out(learnt.labels, share, seed)
        return select(learnt, kept), select(learnt, held_out)


def open_dataset(text: str, home: ConfigDict) -> Dataset:
    """Opens a data set by name.

    Args:
        text: Name of the data set, see `suite.resolve_dataset`. '' means the data of the pretraining.
        home: Group `data` of the pretraining's configuration.

    Raises:
        DataError: The data set does not exist, is not prepared, or has no split to test on.
    """
    data = home.copy_and_resolve_references()
    spec = None
    if text:
        spec = resolve_dataset(text, home.path if home.source == 'tfds' else '')
        with data.unlocked():
            data.update(spec.data_fields())
    if not data.eval_split:
        raise DataError(
            "data.eval_split='': the pretraining had no split to evaluate on; choose a --dataset, or "
            '--protocols=measures, which needs no labels'
        )
    train = load_examples(data, data.split)
    validation = None
    if spec is not None and spec.validation_split:
        validation = align_classes(load_examples(data, spec.validation_split), train)
    test = align_classes(load_examples(data, data.eval_split), train)
    metric = 'map_11_point' if train.is_multi_label else 'top1'
    remark = ''
    if spec is not None:
        metric = spec.metric(train)
        remark = spec.size_difference(train.size + (validation.size if validation else 0), test.size)
    return Dataset(dataset_name(text, home), data, train, validation, test, metric, remark)


def open_images(text: str, home: ConfigDict) -> Dataset:
    """Opens images to measure without labels: the test split, or all images where there are no splits.

    Args:
        text: Name of the data set, see `embed.open_split`. '' means the data of the pretraining.
        home: Group `data` of the pretraining's configuration.

    Returns:
        A data set whose only split serves for learning and testing.

    Raises:
        DataError: The data set does not exist, is not prepared, or has no image.
    """
    images = open_split(home, text, '')
    return Dataset(dataset_name(text, home), home, images, None, images, 'top1')


def dataset_name(text: str, home: ConfigDict) -> str:
    """Name of a data set in the results. The arguments are those of `open_dataset`."""
    return text or {'tfds': home.name, 'folder': home.path, 'arrays': home.path}.get(home.source, home.source)


def hold_out(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides labelled images into a part to learn from and a part to choose settings on.

    The division is stratified by class. Where images have several labels, it is random.

    Args:
        labels: Labels of the images, int [N] or [N, K].
        share: Share of the second part, in (0, 1).
        seed: Seed of the division.

    Returns:
        Indices of the first and of the second part, in ascending order.
    """
    if labels.ndim == 1:
        return train_validation_split(labels, share, seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    held_out = max(1, round(share * len(labels)))
    return np.sort(order[held_out:]), np.sort(order[:held_out])
