"""Protocols that classify features as they are: kNN, logistic regression, support vector machines."""

import dataclasses
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from simclr_jax.config.label_budget import Labels
from simclr_jax.data.select import labelled_indices
from simclr_jax.evaluation.datasets import Dataset, hold_out
from simclr_jax.evaluation.extractor import FeatureExtractor
from simclr_jax.evaluation.features import Features
from simclr_jax.evaluation.results import Score, grade
from simclr_jax.probes import logistic, svm
from simclr_jax.probes.knn import knn_predict
from simclr_jax.probes.linear_model import predict_logits

# Classes with fewer labels have none to spare for choosing the penalty, and get this one.
LABELS_TO_VALIDATE = 20
L2_OF_FEW = 1.0


@dataclasses.dataclass(frozen=True)
class Material:
    """What a protocol on frozen features has to go by.

    Attributes:
        bank: features whose labels are known.
        held_out: further ones, to choose settings on; None: cut them from the bank.
        queries: features to classify.
        num_classes: K.
        config: of the evaluation.
        score: (scores [N, K], labels) -> the data set's metric.
    """

    bank: Features
    held_out: Features | None
    queries: Features
    num_classes: int
    config: ConfigDict
    score: Callable[[np.ndarray, np.ndarray], float]


def evaluate_frozen(
    protocol: str, encoder: FeatureExtractor, dataset: Dataset, labels: Labels, config: ConfigDict
) -> list[Score]:
    """Scores of one protocol with so many labels.

    Args:
        protocol: 'knn', 'linear', 'svm' or 'low_shot'.
        encoder: makes the features.
        dataset: labelled.
        labels: how many may be learnt from; 'low_shot' has its own numbers.
        config: of the evaluation.
    """
    if protocol == 'low_shot':
        return [score for layer in config.svm.layers for score in _low_shot(encoder, dataset, layer, config)]
    layers = config.svm.layers if protocol == 'svm' else ('h',)
    published = dataset.published(labels)
    # All labels of a published subset are so many of the data set's.
    drawn = labels if published is None else Labels()
    scores = []
    for layer in layers:
        material = _material(encoder, published or dataset, layer, config)
        draws = 1 if drawn == Labels() else config.draws
        predictions: dict[str, list[np.ndarray]] = {}
        for draw in range(draws):
            for detail, found in classify(protocol, _drawn(material, drawn, draw), labels).items():
                predictions.setdefault(detail, []).append(found)
        metric = 'map' if protocol == 'svm' else dataset.metric
        for detail, found in predictions.items():
            name = ', '.join(filter(None, (layer if protocol == 'svm' else '', detail)))
            value = grade(metric, found, material.queries.labels, config)
            scores.append(Score(dataset.name, protocol, name, str(labels), metric, encoder.name, **value))
    return scores


def classify(protocol: str, material: Material, labels: Labels) -> dict[str, np.ndarray]:
    """Predicted labels [Q], or scores [Q, K], for each of the protocol's settings that are reported."""
    if protocol == 'knn':
        return _knn(material, labels)
    if protocol == 'linear':
        return {'': _linear(material)}
    bank = _joined(material.bank, material.held_out)
    machines = svm.fit_cross_validated(bank.values, as_targets(bank.labels, material.num_classes))
    return {'': predict_logits(machines.weights, material.queries.values)}


def _knn(material: Material, labels: Labels) -> dict[str, np.ndarray]:
    bank = _joined(material.bank, material.held_out)
    # With few labels a class, more neighbours than these are of other classes for certain.
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


def _linear(material: Material) -> np.ndarray:
    """Logits [Q, K] of logistic regression; a class without a label has the lowest."""
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
    return logits


def _low_shot(encoder: FeatureExtractor, dataset: Dataset, layer: str, config: ConfigDict) -> list[Score]:
    material = _material(encoder, dataset, layer, config)
    bank, held_out = material.bank, material.held_out
    if held_out is None:
        fitted, held = hold_out(bank.labels, config.validation_share, config.seed)
        bank, held_out = bank.rows(fitted), bank.rows(held)
    targets, held_targets = (as_targets(part.labels, material.num_classes) for part in (bank, held_out))
    fewest = (targets == 1).sum(axis=0).min()
    sizes = [positives for positives in config.svm.positives if positives <= fewest]
    if not sizes:
        raise ValueError(f'svm.positives={config.svm.positives}: a class has but {fewest} images to draw from')
    scores = []
    for positives in sizes:
        found = []
        for sample in range(config.svm.samples):
            machines = svm.fit_low_shot(
                bank.values, targets, held_out.values, held_targets, positives=positives, seed=config.seed + sample
            )
            found.append(predict_logits(machines.weights, material.queries.values))
        value = grade('map', found, material.queries.labels, config)
        scores.append(Score(dataset.name, 'low_shot', layer, str(positives), 'map', encoder.name, **value))
    return scores


def _material(encoder: FeatureExtractor, dataset: Dataset, layer: str, config: ConfigDict) -> Material:
    validation = None if dataset.validation is None else encoder.features(dataset.validation, layer)
    return Material(
        bank=encoder.features(dataset.train, layer).labelled(),
        held_out=None if validation is None else validation.labelled(),
        queries=encoder.features(dataset.test, layer).labelled(),
        num_classes=dataset.num_classes,
        config=config,
        score=lambda scores, known: grade(dataset.metric, [scores], known, None)['value'],
    )


def _drawn(material: Material, labels: Labels, draw: int) -> Material:
    """The material with so few labels; they are drawn from training and validation images alike."""
    if labels == Labels():
        return material
    bank = _joined(material.bank, material.held_out)
    chosen = labelled_indices(bank.labels, labels, material.config.seed + draw)
    return dataclasses.replace(material, bank=bank.rows(chosen), held_out=None)


def as_targets(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Labels [N] or [N, K] as [N, K] of 1: present, 0: absent, -1: ignored."""
    return labels if labels.ndim == 2 else (labels[:, None] == np.arange(num_classes)).astype(np.int32)


def _learnable(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Classes with something to learn from."""
    if labels.ndim == 1:
        return np.unique(labels)
    return np.flatnonzero((labels == 1).any(axis=0) & (labels == 0).any(axis=0))


def _renumbered(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return np.searchsorted(classes, labels) if labels.ndim == 1 else labels[:, classes]


def _fewest(labels: np.ndarray) -> int:
    """Labels of the class that has the fewest, of those that have any."""
    counts = np.unique(labels, return_counts=True)[1] if labels.ndim == 1 else (labels == 1).sum(axis=0)
    return counts[counts > 0].min(initial=len(labels))


def _joined(first: Features, second: Features | None) -> Features:
    if second is None:
        return first
    return Features(
        *(np.concatenate([getattr(first, name), getattr(second, name)]) for name in ('values', 'labels', 'index'))
    )
