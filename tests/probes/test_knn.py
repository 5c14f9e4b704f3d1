"""Nearest neighbours and their vote against NumPy in double precision, scikit-learn and cases known by hand."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from simclr_jax.probes.knn import knn_accuracy, knn_predict, nearest_neighbours, neighbourhood_agreement

NUM_CLASSES = 5


def clusters(num_bank=1237, num_queries=311, width=24):
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(NUM_CLASSES, width))
    bank_labels = generator.integers(0, NUM_CLASSES, num_bank)
    query_labels = generator.integers(0, NUM_CLASSES, num_queries)
    bank = centres[bank_labels] + 2 * generator.normal(size=(num_bank, width))
    queries = centres[query_labels] + 2 * generator.normal(size=(num_queries, width))
    return bank.astype(np.float32), bank_labels, queries.astype(np.float32), query_labels


def cosines_in_double_precision(bank, queries):
    bank, queries = bank.astype(np.float64), queries.astype(np.float64)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    return queries @ bank.T


def votes_in_double_precision(bank, bank_labels, queries, k, temperature):
    """Share of the vote of every class, [Q, K]."""
    similarity = cosines_in_double_precision(bank, queries)
    nearest = np.argsort(-similarity, axis=1, kind='stable')[:, :k]
    weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / temperature)
    votes = np.stack([(weights * (bank_labels[nearest] == c)).sum(1) for c in range(NUM_CLASSES)], axis=1)
    return votes / votes.sum(axis=1, keepdims=True)


@pytest.mark.parametrize('exclude_self', [False, True])
@pytest.mark.parametrize('query_block, bank_block', [(256, 65536), (100, 500), (7, 130)])
def test_neighbours_are_those_of_the_whole_similarity_matrix(query_block, bank_block, exclude_self):
    """Neither block divides the queries or the members, and 200 neighbours exceed a block of 130."""
    bank, _, queries, _ = clusters(403, 311)
    queries = bank if exclude_self else queries
    blocks = {'query_block': query_block, 'bank_block': bank_block}
    similarity, index = nearest_neighbours(bank, queries, k=200, exclude_self=exclude_self, **blocks)
    assert (similarity.dtype, index.dtype, similarity.shape) == (np.float32, np.int64, (len(queries), 200))
    expected = cosines_in_double_precision(bank, queries)
    if exclude_self:
        np.fill_diagonal(expected, -np.inf)
    # Cosines in float32, a few roundings of 6e-8: of the neighbours found, and of the nearest ones there are.
    np.testing.assert_allclose(similarity, np.take_along_axis(expected, index, axis=1), rtol=0, atol=1e-6)
    np.testing.assert_allclose(similarity, -np.sort(-expected, axis=1)[:, :200], rtol=0, atol=1e-6)
    assert (np.diff(similarity, axis=1) <= 0).all()
    assert (np.diff(np.sort(index, axis=1), axis=1) > 0).all()


def test_neighbours_are_scikit_learns():
    bank, _, queries, _ = clusters(300, 100)
    distance, index = NearestNeighbors(n_neighbors=7, algorithm='brute', metric='cosine').fit(bank).kneighbors(queries)
    found_similarity, found = nearest_neighbours(bank, queries, k=7)
    np.testing.assert_allclose(found_similarity, 1 - distance, rtol=0, atol=1e-6)
    # Neighbours nearer to each other than float32 tells apart may change places.
    clear = (np.diff(distance, axis=1) > 1e-6).all(axis=1)
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(found[clear], index[clear])


@pytest.mark.parametrize('bank_block', [64, 7])
def test_equal_neighbours_come_in_the_order_of_the_bank(bank_block):
    bank = np.tile(np.eye(3), (20, 1))
    _, index = nearest_neighbours(bank, np.array([[0.0, 2.0, 0.0]]), k=25, bank_block=bank_block)
    others = [row for row in range(60) if row % 3 != 1]
    np.testing.assert_array_equal(index, [[*range(1, 60, 3), *others[:5]]])
    _, index = nearest_neighbours(bank, bank, k=59, exclude_self=True, bank_block=bank_block)
    for row, neighbours in enumerate(index.tolist()):
        alike = [other for other in range(60) if other % 3 == row % 3 and other != row]
        assert neighbours == alike + [other for other in range(60) if other % 3 != row % 3]


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


def test_the_same_directions_have_the_same_neighbours():
    bank, _, _, _ = clusters(200)
    turned = bank[:, ::-1] * np.random.default_rng(1).uniform(0.1, 10, (200, 1))
    assert neighbourhood_agreement(bank, turned) == 1


@pytest.mark.parametrize('k', [1, 5, 199])
def test_agreement_is_the_share_of_common_neighbours(k):
    """Features of the second set are part signal, part noise, and of another width."""
    first, _, _, _ = clusters(200)
    second = np.concatenate([first, np.random.default_rng(1).normal(scale=3, size=(200, 10))], axis=1)
    sets = []
    for features in (first, second):
        similarity = cosines_in_double_precision(features, features)
        np.fill_diagonal(similarity, -np.inf)
        sets.append([set(row) for row in np.argsort(-similarity, axis=1)[:, :k].tolist()])
    expected = np.mean([len(one & other) / k for one, other in zip(*sets, strict=True)])
    assert k == 199 or 0.1 < expected < 0.9
    np.testing.assert_allclose(neighbourhood_agreement(first, second, k), expected, rtol=1e-12)


def test_agreement_of_unrelated_features_is_that_of_chance():
    first, second = np.random.default_rng(0).normal(size=(2, 500, 16))
    # The mean of 500 images with 20 neighbours of 499 each: a deviation of sqrt(0.04 * 0.96 / 10000) = 0.002.
    np.testing.assert_allclose(neighbourhood_agreement(first, second, 20), 20 / 499, rtol=0, atol=0.008)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'k': [1, 13]}, 'k=13 neighbours requested from a bank of 12: use k of at most 12'),
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


@pytest.mark.parametrize(
    'change, message',
    [
        ({'k': 13}, 'k=13 neighbours requested from a bank of 12: use k of at most 12'),
        ({'k': 12, 'exclude_self': True}, 'use k of at most 11'),
        ({'k': 0}, 'k=0 must be at least 1'),
        ({'queries': np.ones((3, 4)), 'exclude_self': True}, '3 queries and a bank of 12: pass the bank'),
        ({'queries': np.ones((3, 5))}, 'bank has 4 features and queries 5'),
        ({'query_block': 0}, 'query_block=0'),
    ],
)
def test_mistakes_in_a_search_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(**({'bank': np.ones((12, 4)), 'queries': np.ones((12, 4)), 'k': 1} | change))


def test_agreement_needs_the_same_images():
    with pytest.raises(ValueError, match='12 features and 11: pass one per image'):
        neighbourhood_agreement(np.ones((12, 4)), np.ones((11, 4)))
