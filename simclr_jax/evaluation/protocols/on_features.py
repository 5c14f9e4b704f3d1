"""Protocols that classify frozen features: kNN, logistic regression and support vector machines."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from ml_collections import ConfigDict

from simclr_jax import distributed
from simclr_jax.config.label_budget import Labels
from simclr_jax.data.select import labelled_indices
from simclr_jax.evaluation.datasets import Dataset, hold_out
from simclr_jax.evaluation.extractor import FeatureExtractor
from simclr_jax.evaluation.features import Features
from simclr_jax.evaluation.protocols.measurement import Measurement
from simclr_jax.evaluation.results import Score, grade
from simclr_jax.probes import linear_model, logistic
from simclr_jax.probes.knn import knn_predict
from simclr_jax.probes.linear_model import predict_logits
from simclr_jax.probes.svm import fit_cross_validated, fit_low_shot

# With fewer labels per class than this, none are held out to choose the penalty. It is then L2_OF_FEW.
LABELS_TO_VALIDATE = 20
L2_OF_FEW = 1.0

Result = TypeVar('Result')


@dataclasses.dataclass(frozen=True)
class Material:
    """Everything that a classifier of frozen features needs.

    Attributes:
        bank: Features whose labels are known.
        held_out: Further labelled features to choose settings on. None means that they are cut from the bank.
        queries: Features to classify.
        num_classes: Number of classes K.
        config: Checked configuration of the evaluation.
        score: Function (scores [N, K], labels) -> the data set's metric.
    """

    bank: Features
    held_out: Features | None
    queries: Features
    num_classes: int
    config: ConfigDict
    score: Callable[[np.ndarray, np.ndarray], float]


# (material, label budget) -> {detail: classes [Q] or scores [Q, K]}, an entry for each setting that is reported.
Classify = Callable[[Material, Labels], dict[str, np.ndarray]]


def knn(measurement: Measurement) -> list[Score]:
    """Scores of cosine kNN, one for each k. A k above the size of the bank, or of a class of it, is lowered to that."""
    scores = _scores('knn', classify_by_knn, measurement, {'h': ''}, measurement.dataset.metric)
    measured = [score.detail for score in scores]
    left_out = [k for k in measurement.config.knn.k if f'k={k}' not in measured]
    # With labels per class, the rows of the table show the number that takes the place of k.
    if left_out and not measurement.labels.per_class:
        measurement.say(
            f'knn.k={",".join(map(str, left_out))}: {measurement.dataset.name} has fewer images to vote with '
            f'{measurement.labels} labels; measured with {measured[-1]} instead.'
        )
    return scores


def linear(measurement: Measurement) -> list[Score]:
    """Scores of logistic regression (SimCLR, appendix B.8)."""
    return _scores('linear', classify_by_regression, measurement, {'h': ''}, measurement.dataset.metric)


def svm(measurement: Measurement) -> list[Score]:
    """Mean average precisions of one linear SVM per class, for each of `config.svm.layers`."""
    layers = {layer: layer for layer in measurement.config.svm.layers}
    return _scores('svm', classify_by_svm, measurement, layers, 'map')


def low_shot(measurement: Measurement) -> list[Score]:
    """Mean average precisions of SVMs that see `config.svm.positives` positive examples per class."""
    return [score for layer in measurement.config.svm.layers for score in _low_shot(measurement, layer)]


def _scores(
    protocol: str, classify: Classify, measurement: Measurement, layers: dict[str, str], metric: str
) -> list[Score]:
    """Scores of one protocol, averaged over draws of the labels where these are few.

    Args:
        protocol: Name in the results.
        classify: Predicts the test images.
        measurement: Extractor, data set and label budget.
        layers: Layer to its name in the results.
        metric: Metric of the results.
    """
    extractor, dataset, labels, config = (
        measurement.extractor,
        measurement.dataset,
        measurement.labels,
        measurement.config,
    )
    published = dataset.published(labels)
    # A published subset is the budget already: all of its labels are used.
    drawn = labels if published is None else Labels()
    scores = []
    for layer, name in layers.items():
        material = _material(extractor, published or dataset, layer, config)
        grades = functools.partial(_grades, classify, material, labels, drawn, metric)
        for detail, values in _of_the_job(material, grades).items():
            row = dataset.name, protocol, ', '.join(filter(None, (name, detail))), str(labels), metric
            scores.append(Score(*row, extractor.name, **values))
    return scores


def _grades(
    classify: Classify, material: Material, labels: Labels, drawn: Labels, metric: str
) -> dict[str, dict[str, Any]]:
    """The grade of each setting, over all draws of the labels. `labels` is the budget, `drawn` what is drawn of it."""
    predictions: dict[str, list[np.ndarray]] = {}
    for draw in range(1 if drawn == Labels() else material.config.draws):
        for detail, found in classify(_drawn(material, drawn, draw), labels).items():
            predictions.setdefault(detail, []).append(found)
    known = material.queries.labels
    return {detail: grade(metric, found, known, material.config) for detail, found in predictions.items()}


def _of_the_job(material: Material, action: Callable[[], Result]) -> Result:
    """The result of a function that fits classifiers, in every process.

    The first process alone fits to little material. To more material all processes fit, with all devices of the job.
    """
    known = [part.values.nbytes for part in (material.bank, material.held_out) if part is not None]
    return distributed.from_first(action, (ValueError,)) if linear_model.fit_alone(sum(known)) else action()


def classify_by_svm(material: Material, labels: Labels) -> dict[str, np.ndarray]:
    """Scores [Q, K] of one linear SVM per class. The cost is chosen by cross-validation."""
    del labels
    bank = _joined(material.bank, material.held_out)
    machines = fit_cross_validated(bank.values, as_targets(bank.labels, material.num_classes))
    return {'': predict_logits(machines.weights, material.queries.values)}


def classify_by_knn(material: Material, labels: Labels) -> dict[str, np.ndarray]:
    """Predicted classes [Q] for each k."""
    bank = _joined(material.bank, material.held_out)
    # With n labels per class, at most n neighbours can be of the right class. A larger k only adds wrong ones.
    most = min(len(bank.labels), labels.per_class or len(bank.labels))
    sizes = sorted({min(k, most) for k in material.config.knn.k})
    predicted = knn_predict(
        bank.values,
        bank.labels,
        material.queries.values,
        k=sizes,
        temperature=material.config.knn.temperature,
        num_classes=material.num_classes,
    )
    return {f'k={k}': predicted[k] for k in sizes}


def classify_by_regression(material: Material, labels: Labels) -> dict[str, np.ndarray]:
    """Logits [Q, K] of logistic regression. A class without a label has the lowest logit."""
    del labels
    settings = material.config.linear
    bank, held_out = material.bank, material.held_out
    classes = _learnable(_joined(bank, held_out).labels, material.num_classes)
    fewest = _fewest(bank.labels)
    if held_out is None and fewest >= LABELS_TO_VALIDATE:
        fitted, held = hold_out(bank.labels, material.config.validation_share, material.config.seed)
        bank, held_out = bank.rows(fitted), bank.rows(held)
    if held_out is None:
        weights = logistic.fit(bank.values, _renumbered(bank.labels, classes), len(classes), L2_OF_FEW)
    else:
        weights = logistic.fit_path(
            bank.values,
            _renumbered(bank.labels, classes),
            held_out.values,
            _renumbered(held_out.labels, classes),
            len(classes),
            lambdas=np.geomspace(settings.largest, settings.smallest, settings.lambdas),
            score=material.score,
        ).weights
    lowest = np.finfo(np.float32).min
    logits = np.full((len(material.queries.values), material.num_classes), lowest, np.float32)
    logits[:, classes] = predict_logits(weights, material.queries.values)
    return {'': logits}


def _low_shot(measurement: Measurement, layer: str) -> list[Score]:
    extractor, dataset, config = measurement.extractor, measurement.dataset, measurement.config
    material = _material(extractor, dataset, layer, config)
    bank, held_out = material.bank, material.held_out
    if held_out is None:
        fitted, held = hold_out(bank.labels, config.validation_share, config.seed)
        bank, held_out = bank.rows(fitted), bank.rows(held)
    targets, held_targets = (as_targets(part.labels, material.num_classes) for part in (bank, held_out))
    fewest = (targets == 1).sum(axis=0).min()
    sizes = [positives for positives in config.svm.positives if positives <= fewest]
    if not sizes:
        raise ValueError(
            f'svm.positives={config.svm.positives}: the smallest class has only {fewest} images to draw from; '
            'choose at most that'
        )

    def grade_of(positives: int) -> dict[str, Any]:
        found = []
        for seed in range(config.seed, config.seed + config.svm.samples):
            machines = fit_low_shot(bank.values, targets, held_out.values, held_targets, positives=positives, seed=seed)
            found.append(predict_logits(machines.weights, material.queries.values))
        return grade('map', found, material.queries.labels, config)

    grades = _of_the_job(material, lambda: [grade_of(positives) for positives in sizes])
    return [
        Score(dataset.name, 'low_shot', layer, str(positives), 'map', extractor.name, **values)
        for positives, values in zip(sizes, grades, strict=True)
    ]


def _material(extractor: FeatureExtractor, dataset: Dataset, layer: str, config: ConfigDict) -> Material:
    validation = None if dataset.validation is None else extractor.features(dataset.validation, layer)
    return Material(
        bank=extractor.features(dataset.train, layer).labelled(),
        held_out=None if validation is None else validation.labelled(),
        queries=extractor.features(dataset.test, layer).labelled(),
        num_classes=dataset.num_classes,
        config=config,
        score=lambda scores, known: grade(dataset.metric, [scores], known, None)['value'],
    )


def _drawn(material: Material, labels: Labels, draw: int) -> Material:
    """The material with a draw of the label budget, from training and validation images together."""
    if labels == Labels():
        return material
    bank = _joined(material.bank, material.held_out)
    chosen = labelled_indices(bank.labels, labels, material.config.seed + draw)
    return dataclasses.replace(material, bank=bank.rows(chosen), held_out=None)


def as_targets(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Converts labels [N] or [N, K] to targets [N, K], 1: present, 0: absent, -1: ignored."""
    return labels if labels.ndim == 2 else (labels[:, None] == np.arange(num_classes)).astype(np.int32)


def _learnable(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Classes with examples to learn from. Multi-label classes need a positive and a negative one."""
    if labels.ndim == 1:
        return np.unique(labels)
    return np.flatnonzero((labels == 1).any(axis=0) & (labels == 0).any(axis=0))


def _renumbered(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return np.searchsorted(classes, labels) if labels.ndim == 1 else labels[:, classes]


def _fewest(labels: np.ndarray) -> int:
    """Number of labels of the smallest class that has any."""
    counts = np.unique(labels, return_counts=True)[1] if labels.ndim == 1 else (labels == 1).sum(axis=0)
    return int(counts[counts > 0].min(initial=len(labels)))


def _joined(first: Features, second: Features | None) -> Features:
    if second is None:
        return first
    return Features(
        *(np.concatenate([getattr(first, name), getattr(second, name)]) for name in ('values', 'labels', 'index'))
    )
