"""The k-nearest-neighbour vote against NumPy in double precision, scikit-learn and cases known by hand."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from simclr_jax.evaluators.knn import knn_accuracy, knn_predict

NUM_CLASSES = 5


def clusters(num_bank=1237, num_queries=311, width=24):
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(NUM_CLASSES, width))
    bank_labels = generator.integers(0, NUM_CLASSES, num_bank)
    query_labels = generator.integers(0, NUM_CLASSES, num_queries)
    bank = centres[bank_labels] + 2 * generator.normal(size=(num_bank, width))
    queries = centres[query_labels] + 2 * generator.normal(size=(num_queries, width))
    return bank.astype(np.float32), bank_labels, queries.astype(np.float32), query_labels


def votes_in_double_precision(bank, bank_labels, queries, k, temperature):
    """Share of the vote of every class, [Q, K]."""
    bank, queries = bank.astype(np.float64), queries.astype(np.float64)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    similarity = queries @ bank.T
    nearest = np.argsort(-similarity, axis=1, kind='stable')[:, :k]
    weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / temperature)
    votes = np.stack([(weights * (bank_labels[nearest] == c)).sum(1) for c in range(NUM_CLASSES)], axis=1)
    return votes / votes.sum(axis=1, keepdims=True)


@pytest.mark.parametrize('query_block, bank_block', [(256, 65536), (100, 500), (7, 130)])
@pytest.mark.parametrize('temperature', [0.07, 1.0])
def test_predictions_are_those_of_the_whole_similarity_matrix(query_block, bank_block, temperature):
    """Neither block divides 311 queries or 1237 members, and 200 neighbours exceed a block of 130."""
    bank, bank_labels, queries, _ = clusters()
    blocks = {'query_block': query_block, 'bank_block': bank_block}
    predicted = knn_predict(
        bank,
        bank_labels,
        queries,
        k=[200, 1, 10],
        num_classes=NUM_CLASSES,
        temperature=temperature,
        **blocks,
    )
    assert list(predicted) == [200, 1, 10]
    for k, labels in predicted.items():
        votes = votes_in_double_precision(bank, bank_labels, queries, k, temperature)
        runner_up, winner = np.sort(votes, axis=1)[:, -2:].T
        # Float32 similarities of 1e-7, over a temperature of 0.07, move a share by far less than 1e-4.
        clear = winner - runner_up > 1e-4
        assert clear.mean() > 0.95
        np.testing.assert_array_equal(labels[clear], votes.argmax(axis=1)[clear])


def test_high_temperature_is_the_majority_vote_of_scikit_learn():
    bank, bank_labels, queries, query_labels = clusters()
    reference = KNeighborsClassifier(15, algorithm='brute', metric='cosine').fit(bank, bank_labels)
    votes = reference.predict_proba(queries)
    # With temperature 1e3 weights differ by 2e-3 at most: less than one vote in fifteen.
    predicted = knn_predict(bank, bank_labels, queries, k=[15], num_classes=NUM_CLASSES, temperature=1e3)[15]
    untied = np.sort(votes, axis=1)[:, -1] > np.sort(votes, axis=1)[:, -2]
    np.testing.assert_array_equal(predicted[untied], votes.argmax(axis=1)[untied])
    accuracy = knn_accuracy(bank, bank_labels, queries, query_labels, k=[15], num_classes=NUM_CLASSES, temperature=1e3)
    assert accuracy[15] == np.mean(predicted == query_labels)


def test_one_hot_clusters_are_told_apart():
    """Even a class with one member among k = 12 wins: the others' similarity is 0, e^(1/0.07) times less."""
    bank_labels = np.array([0] * 6 + [1] * 5 + [2])
    bank = 3.0 * np.eye(3)[bank_labels]
    queries = 0.1 * np.eye(3)[[2, 0, 2]]
    accuracy = knn_accuracy(bank, bank_labels, queries, np.array([2, 0, 2]), k=[1, 12], num_classes=3)
    assert accuracy == {1: 1.0, 12: 1.0}


@pytest.mark.parametrize('bank_block', [64, 10])
def test_ties_go_to_the_first_member_and_the_lower_class(bank_block):
    bank = np.tile(np.array([[1.0, 0.0]]), (60, 1))
    labels = np.array([3] + [1] * 29 + [0] * 30)
    predicted = knn_predict(
        bank, labels, bank[:2], k=[1, 2, 58, 60], num_classes=4, temperature=1.0, bank_block=bank_block
    )
    first = {size: set(votes.tolist()) for size, votes in predicted.items()}
    # 1: the first member; 2: one vote each for 3 and 1; 58: 29 votes for 1, 28 for 0; 60: 30 votes for 0.
    assert first == {1: {3}, 2: {1}, 58: {1}, 60: {0}}


def test_scale_of_the_features_does_not_matter():
    bank, labels, queries, _ = clusters(200, 50)
    scales = np.float32(10.0) ** np.random.default_rng(1).integers(-25, 25, (200, 1)).astype(np.float32)
    settings = {'k': [9], 'num_classes': NUM_CLASSES}
    plain = knn_predict(bank, labels, queries, **settings)[9]
    np.testing.assert_array_equal(knn_predict(bank * scales, labels, queries, **settings)[9], plain)


def test_features_of_zeros_and_small_temperatures_stay_finite():
    bank = np.array([[0.0, 0.0], [1.0, 0.0]])
    predicted = knn_predict(
        bank, np.array([1, 0]), np.array([[1.0, 0.0], [0.0, 0.0]]), k=[2], num_classes=2, temperature=1e-3
    )
    np.testing.assert_array_equal(predicted[2], [0, 0])


@pytest.mark.parametrize(
    'change, message',
    [
        ({'k': [1, 13]}, 'k=13 neighbours asked of a bank of 12: use k of at most 12'),
        ({'k': [0]}, 'at least 1'),
        ({'temperature': 0.0}, 'temperature=0.0 must be positive'),
        ({'bank_block': 0}, 'bank_block=0'),
        ({'num_classes': 2}, r'0\.\.2, must be in 0\.\.1'),
        ({'queries': np.ones((3, 5))}, 'bank has 4 features and queries 5'),
        ({'queries': np.full((3, 4), np.nan)}, 'queries holds NaN'),
        ({'bank': np.ones(12)}, 'bank has shape'),
        ({'bank_labels': np.zeros(11, int)}, 'one integer for each of 12'),
        ({'bank_labels': np.zeros(12)}, 'float64'),
    ],
)
def test_mistakes_are_named(change, message):
    arguments = {
        'bank': np.ones((12, 4)),
        'bank_labels': np.arange(12) % 3,
        'queries': np.ones((3, 4)),
        'k': [1],
        'num_classes': 3,
    }
    with pytest.raises(ValueError, match=message):
        knn_predict(**(arguments | change))
