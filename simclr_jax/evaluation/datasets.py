"""The data sets that an encoder is measured on: what to learn from, what to choose on, what to report."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from simclr_jax.config.label_budget import Labels
from simclr_jax.data.select import concatenate, labelled_part, published_subset, select
from simclr_jax.data.sources import align_classes, load_examples
from simclr_jax.data.spec import DataError, Examples
from simclr_jax.data.subsets import train_validation_split
from simclr_jax.data.suite import resolve_dataset


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set with its splits.

    Attributes:
        name: as in the results.
        data: how its images are found; the group `data` of a configuration.
        train: to learn from; without `validation`.
        validation: to choose settings on, where the data set has such a split; the final classifier learns from
            it as well.
        test: to report on.
        metric: 'top1', 'mean_per_class' or 'map_11_point'.
        remark: on how it differs from the one in the paper; '' where it does not.
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
        """K; 0 without labels."""
        return self.train.num_classes

    @property
    def description(self) -> str:
        """The splits with their sizes."""
        learnt = [part for part in (self.train, self.validation) if part is not None]
        sources = ' and '.join(f'{part.name} ({part.size:,})' for part in learnt)
        return f'{sources} -> {self.test.name} ({self.test.size:,})'

    def published(self, labels: Labels) -> 'Dataset | None':
        """This data set with the published subset of so many labels in place of `train`; None without one."""
        name = published_subset(self.data.name, labels) if self.data.source == 'tfds' else None
        if name is None:
            return None
        data = self.data.copy_and_resolve_references()
        data.name = name
        return dataclasses.replace(self, data=data, train=align_classes(load_examples(data, 'train'), self.train))

    def learnt_with(self, labels: Labels, seed: int) -> Examples:
        """All images whose labels may be learnt from, those of a validation split included."""
        published = self.published(labels)
        if published is not None:
            return published.train
        everything = self.train if self.validation is None else concatenate(self.train, self.validation)
        return labelled_part(everything, labels, seed)

    def divided(self, labels: Labels, share: float, seed: int) -> tuple[Examples, Examples]:
        """The same images as two splits: to learn from, and to choose settings on."""
        if self.validation is not None and labels == Labels():
            return self.train, self.validation
        learnt = self.learnt_with(labels, seed)
        return tuple(select(learnt, indices) for indices in hold_out(learnt.labels, share, seed))


def open_dataset(text: str, home: ConfigDict) -> Dataset:
    """Opens a data set by name.

    Args:
        text: see suite.resolve_dataset; '': the data of the pretraining.
        home: the group `data` of the pretraining's configuration.

    Raises:
        DataError: no such data set, not prepared, no split to test on.
    """
    data = home.copy_and_resolve_references()
    spec = None
    if text:
        spec = resolve_dataset(text, home.path if home.source == 'tfds' else '')
        with data.unlocked():
            data.update(spec.data_fields())
    if not data.eval_split:
        raise DataError("data.eval_split='': the pretraining had no split to evaluate on; name one by --dataset")
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


def dataset_name(text: str, home: ConfigDict) -> str:
    """What a data set is called in results; '' is that of the pretraining."""
    return text or {'tfds': home.name, 'folder': home.path, 'arrays': home.path}.get(home.source, home.source)


def hold_out(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to learn from and to choose settings on: stratified, or at random where images have several labels."""
    if labels.ndim == 1:
        return train_validation_split(labels, share, seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    held_out = max(1, round(share * len(labels)))
    return np.sort(order[held_out:]), np.sort(order[:held_out])
