"""Protocols: ways to measure an encoder. PROTOCOLS names them all, and each kind has its own file."""

import dataclasses
from collections.abc import Callable

from ml_collections import ConfigDict

from simclr_jax.evaluation.masked_datasets import MaskedDataset, open_masked
from simclr_jax.evaluation.protocols import by_training, label_free, on_features, own_classifier
from simclr_jax.evaluation.protocols import segmentation as with_masks
from simclr_jax.evaluation.results import Score
from simclr_jax.probes.svm import FOLDS


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way to measure an encoder.

    Attributes:
        name: Name in `config.protocols` and in the results. Settings are in the configuration's group of that name.
        evaluate: Function of a `Measurement` that gives the scores.
        by_budget: Whether it is measured for each of `config.labels`. Otherwise it is measured once.
        per_class: Whether a budget may be a number of labels per class.
        needs_labels: Whether the images need labels.
        several_labels: Whether an image may have several labels.
        on_pixels: Whether it also measures raw pixels.
        least_per_class: Fewest labels per class that it can work with.
        needs_training: Whether it trains, and keeps its trainings in the work directory.
        open_own: Opens the data set that it alone is measured on, a function of the evaluation's configuration and of
            the group `data` of the pretraining's. None: it is measured on each of `config.datasets`.
    """

    name: str
    evaluate: Callable[..., list[Score]]
    by_budget: bool = True
    per_class: bool = True
    needs_labels: bool = True
    several_labels: bool = True
    on_pixels: bool = False
    least_per_class: int = 1
    needs_training: bool = False
    open_own: Callable[[ConfigDict, ConfigDict], MaskedDataset] | None = None


PROTOCOLS = (
    Protocol('knn', on_features.knn, several_labels=False, on_pixels=True),
    Protocol('linear', on_features.linear, on_pixels=True),
    Protocol('svm', on_features.svm, least_per_class=FOLDS),
    Protocol('low_shot', on_features.low_shot, by_budget=False),
    Protocol('linear_sgd', by_training.linear_sgd, needs_training=True),
    Protocol('finetune', by_training.finetune, needs_training=True),
    Protocol('multihead', by_training.multihead, several_labels=False, needs_training=True),
    Protocol(
        'segmentation',
        with_masks.segmentation,
        per_class=False,
        needs_labels=False,
        needs_training=True,
        open_own=open_masked,
    ),
    Protocol('classifier', own_classifier.classifier, by_budget=False),
    Protocol('measures', label_free.measures, by_budget=False, needs_labels=False),
)
