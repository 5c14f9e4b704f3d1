"""Features built so that the right answer is known, given to every protocol on frozen features alike."""

import numpy as np
import pytest

from simclr_jax import sharding
from simclr_jax.config import load_evaluation
from simclr_jax.config.label_budget import Labels
from simclr_jax.evaluation.features import Features
from simclr_jax.evaluation.protocols.on_features import (
    Material,
    classify_by_knn,
    classify_by_regression,
    classify_by_svm,
)
from simclr_jax.evaluation.results import grade
from support.runs import mesh_of

PROTOCOLS = {'knn': classify_by_knn, 'linear': classify_by_regression, 'svm': classify_by_svm}
CONFIG = load_evaluation('', [('knn.k', '5'), ('linear.lambdas', '3'), ('linear.smallest', '0.01')])
CLASSES, WIDTH, BANK, QUERIES = 4, 8, 240, 100


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """With eight, most of the time would go into waiting for each other."""
    monkeypatch.setattr(sharding, 'make_mesh', mesh_of(1))


def features_of(values, labels):
    return Features(np.asarray(values, np.float32), np.asarray(labels, np.int32), np.arange(len(labels)))


def accuracy(protocol, bank, queries, per_class=False):
    material = Material(
        bank=bank,
        held_out=None,
        queries=queries,
        num_classes=CLASSES,
        config=CONFIG,
        score=lambda scores, labels: grade('top1', [scores], labels, None)['value'],
    )
    (found,) = PROTOCOLS[protocol](material, Labels()).values()
    return grade('mean_per_class' if per_class else 'top1', [found], queries.labels, None)['value']


def drawn(size, seed, separation):
    """Classes around corners of a cube, so far apart; noise of deviation 1."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(CLASSES, size=size)
    labels[: 20 * CLASSES] = np.arange(20 * CLASSES) % CLASSES
    return features_of(separation * np.eye(CLASSES, WIDTH)[labels] + generator.normal(size=(size, WIDTH)), labels)


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_separable_classes_are_told_apart(protocol):
    assert accuracy(protocol, drawn(BANK, 0, 12.0), drawn(QUERIES, 1, 12.0)) == 1.0


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_noise_is_chance(protocol):
    """Of 100 queries a quarter is right by chance, with a standard deviation of 4.3 %; four of them are allowed."""
    assert abs(accuracy(protocol, drawn(BANK, 0, 0.0), drawn(QUERIES, 1, 0.0)) - 1 / CLASSES) < 4 * 0.0433


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_one_hot_clusters_are_exact(protocol):
    """Every image of a class has the same features: there is nothing between the clusters, and all are ties."""
    labels = np.arange(BANK) % CLASSES
    bank = features_of(np.eye(CLASSES, WIDTH)[labels], labels)
    assert accuracy(protocol, bank, features_of(np.eye(CLASSES, WIDTH), np.arange(CLASSES))) == 1.0


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_two_classes_with_the_same_features_share_the_answer(protocol):
    """Classes 0 and 1 cannot be told apart: one of them is always right, the other never."""
    labels = np.arange(BANK) % CLASSES
    values = np.eye(CLASSES, WIDTH)[np.maximum(labels, 1)]
    queries = features_of(np.eye(CLASSES, WIDTH)[[1, 1, 2, 3]], np.arange(CLASSES))
    assert accuracy(protocol, features_of(values, labels), queries) == 0.75


@pytest.mark.parametrize('protocol', ('knn', 'linear'))
def test_a_class_with_one_example_is_found_where_it_lies(protocol):
    """A vote of 5 has 4 of others, but their weights vanish: similarity 1 against 0, exp(1 / 0.07) to 1."""
    labels = np.append(np.arange(BANK) % (CLASSES - 1), CLASSES - 1)
    bank = features_of(10 * np.eye(CLASSES, WIDTH)[labels], labels)
    assert accuracy(protocol, bank, features_of(10 * np.eye(CLASSES, WIDTH), np.arange(CLASSES))) == 1.0


def test_a_machine_for_a_class_with_one_example_is_refused():
    labels = np.append(np.arange(BANK) % (CLASSES - 1), CLASSES - 1)
    bank = features_of(np.eye(CLASSES, WIDTH)[labels], labels)
    with pytest.raises(ValueError, match='class 3 is present in 1 examples, at least 3 are needed'):
        accuracy('svm', bank, bank)


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_a_class_absent_from_the_test_does_not_count(protocol):
    queries = drawn(QUERIES, 1, 12.0)
    kept = queries.labels != 2
    queries = features_of(queries.values[kept], queries.labels[kept])
    assert accuracy(protocol, drawn(BANK, 0, 12.0), queries, per_class=True) == 1.0


@pytest.mark.parametrize('protocol', ('knn', 'linear'))
def test_a_class_absent_from_training_is_never_predicted(protocol):
    bank = drawn(BANK, 0, 12.0)
    kept = bank.labels != 2
    queries = drawn(QUERIES, 1, 12.0)
    found = accuracy(protocol, features_of(bank.values[kept], bank.labels[kept]), queries)
    assert found == np.mean(queries.labels != 2)
