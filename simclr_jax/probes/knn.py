"""Nearest neighbours of frozen features by cosine similarity, and the weighted vote of their labels.

The full matrix of similarities is never in memory. The search goes through the bank block by block. Every query keeps
its nearest neighbours among the blocks seen so far.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.ops.precision import precise_matmul
from simclr_jax.probes.checks import check_features, check_labels


def nearest_neighbours(
    bank,
    queries,
    *,
    k: int,
    exclude_self: bool = False,
    query_block: int = 256,
    bank_block: int = 65536,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k members of the bank most similar to each query, nearest first.

    Among equal similarities, the member that comes first in the bank counts as nearer. A feature of zeros has
    similarity 0 with everything.

    Args:
        bank: [N, F] finite features. They need not be normalised.
        queries: [Q, F] finite features.
        k: Number of neighbours, in 1..N, or in 1..N - 1 with `exclude_self`.
        exclude_self: Whether a row is never its own neighbour. The queries must then be the bank.
        query_block: Queries per block. Together with `bank_block` it bounds the similarities held in memory.
        bank_block: Members of the bank per block, held on the device together.

    Returns:
        similarity: [Q, k] float32, cosines.
        index: [Q, k] int64, rows of the bank.

    Raises:
        ValueError: Shapes or settings break a rule above. The message names the cure.
    """
    bank, queries = _check_pair(bank, queries)
    _check_neighbours(k, len(bank), exclude_self)
    _check_blocks(query_block, bank_block)
    if exclude_self and len(queries) != len(bank):
        raise ValueError(
            f'exclude_self=True with {len(queries)} queries and a bank of {len(bank)}: '
            'pass the bank as the queries, or exclude_self=False'
        )
    similarity, index = _search(bank, queries, k, query_block, bank_block, exclude_self)
    return similarity, index.astype(np.int64)


def knn_predict(
    bank,
    bank_labels,
    queries,
    *,
    k: Sequence[int],
    num_classes: int,
    temperature: float = 0.07,
    query_block: int = 256,
    bank_block: int = 65536,
) -> dict[int, np.ndarray]:
    """Predicts labels by a vote of the k nearest members of the bank, with weights exp(similarity / temperature).

    Ties are resolved the same way in every run. Among equal similarities, the member that comes first in the bank
    counts as nearer. Among classes with equal votes, the lower label wins. A feature of zeros has similarity 0 with
    everything.

    Args:
        bank: [N, F] finite features with known labels. They need not be normalised.
        bank_labels: [N] integers in 0..num_classes - 1.
        queries: [Q, F] finite features to classify.
        k: Numbers of neighbours, each in 1..N. One search serves all of them.
        num_classes: Number of classes.
        temperature: Positive temperature of the weights. The smaller it is, the more the nearest neighbours count.
        query_block: Queries per block. Together with `bank_block` it bounds the similarities held in memory.
        bank_block: Members of the bank per block, held on the device together.

    Returns:
        The predicted labels [Q], int32, for each k.

    Raises:
        ValueError: Shapes, labels or settings break a rule above. The message names the cure.

    Source: the protocol of Wu et al., arXiv 1805.01978, section 3.4.
    """
    bank, queries = _check_pair(bank, queries)
    bank_labels = check_labels('bank_labels', bank_labels, len(bank), num_classes)
    if not k:
        raise ValueError(f'k={list(k)} must name one or more numbers of neighbours')
    for size in k:
        _check_neighbours(size, len(bank))
    if not temperature > 0:
        raise ValueError(f'temperature={temperature} must be positive; 0.07 is usual')
    _check_blocks(query_block, bank_block)

    similarity, index = _search(bank, queries, max(k), query_block, bank_block)
    predicted = _vote(similarity, bank_labels[index], temperature, tuple(sorted(set(k))), num_classes)
    return {size: np.asarray(predicted[size]) for size in k}


def knn_accuracy(bank, bank_labels, queries, query_labels, *, num_classes, **settings) -> dict[int, float]:
    """Computes the fraction of the queries whose label `knn_predict` predicts, for each k.

    Args:
        bank: [N, F] finite features with known labels, see `knn_predict`.
        bank_labels: [N] integers in 0..num_classes - 1.
        queries: [Q, F] finite features to classify.
        query_labels: [Q] integers in 0..num_classes - 1. Classes may be absent.
        num_classes: Number of classes.
        **settings: Further arguments of `knn_predict`.

    Returns:
        A fraction in 0..1 for each k.

    Raises:
        ValueError: An argument breaks a rule of `knn_predict`.

    Example:
        >>> bank = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
        >>> knn_accuracy(bank, [0, 1], bank, [0, 0], k=(1,), num_classes=2)
        {1: 0.5}
    """
    query_labels = check_labels('query_labels', query_labels, len(queries), num_classes)
    predicted = knn_predict(bank, bank_labels, queries, num_classes=num_classes, **settings)
    return {size: float(np.mean(labels == query_labels)) for size, labels in predicted.items()}


def _search(bank, queries, k, query_block, bank_block, exclude_self=False):
    """Finds similarity and index of the k nearest members, nearest first, each [Q, k]."""
    num_queries = len(queries)
    query_block = min(query_block, num_queries)
    queries = _pad_rows(queries, query_block).reshape(-1, query_block, queries.shape[1])
    bank_block = min(bank_block, len(bank))
    # About sqrt(block / k) members per group balance the cost of the two searches of `_merge`.
    group = math.isqrt(max(bank_block // k, 1))
    bank_block = math.ceil(bank_block / group) * group
    queries = _normalize(jnp.asarray(queries))
    nearest = (
        jnp.full((*queries.shape[:2], k), -jnp.inf, jnp.float32),
        jnp.zeros((*queries.shape[:2], k), jnp.int32),
    )
    for start in range(0, len(bank), bank_block):
        members = bank[start : start + bank_block]
        nearest = _merge(
            nearest,
            queries,
            _pad_rows(members, bank_block),
            np.int32(start),
            np.int32(len(members)),
            group=group,
            exclude_self=exclude_self,
        )
    return tuple(np.asarray(part).reshape(-1, k)[:num_queries] for part in nearest)


@functools.partial(jax.jit, static_argnames=('group', 'exclude_self'), donate_argnums=0)
def _merge(nearest, queries, members, first, num_valid, *, group, exclude_self):
    """Merges a block of the bank into the nearest neighbours found so far.

    A full search over long rows would take most of the time. The search therefore has two stages. Each of the k
    nearest members lies in one of the k groups with the largest maxima. Only those groups are searched.

    Args:
        nearest: Pair (similarity, index), each [blocks, query_block, k].
        queries: [blocks, query_block, F] features of unit length.
        members: [bank_block, F] features. `bank_block` is a multiple of `group`.
        first: Index of the first member in the bank.
        num_valid: Number of members that are not padding.
        group: Consecutive members per group.
        exclude_self: Whether to skip the comparison of a query with the member of the same index.

    Returns:
        Pair (similarity, index) like `nearest`.
    """
    num_groups = len(members) // group
    index = jnp.arange(len(members), dtype=jnp.int32).reshape(num_groups, group)
    padding = index >= num_valid
    index = index + first
    # In the order [group, num_groups] the members of a group lie one row apart, so the maxima are vector operations.
    members = _normalize(members).reshape(num_groups, group, -1).swapaxes(0, 1).reshape(members.shape)

    def merge_queries(block):
        (known_similarity, known_index), block_queries, own = block
        k = known_index.shape[1]
        similarity = precise_matmul(block_queries, members.T)
        similarity = similarity.reshape(-1, group, num_groups)
        left_out = padding.T
        if exclude_self:
            left_out = left_out | (own[:, None, None] == index.T)
        similarity = jnp.where(left_out, -jnp.inf, similarity)
        _, best_groups = jax.lax.top_k(similarity.max(axis=1), min(k, num_groups))
        # top_k prefers the first among equals. In the bank's order it resolves ties by the bank's order.
        best_groups = jnp.sort(best_groups, axis=1)
        found = jnp.take_along_axis(similarity, best_groups[:, None, :], axis=2).swapaxes(1, 2)
        candidates = jnp.concatenate([known_similarity, found.reshape(len(found), -1)], axis=1)
        candidate_index = jnp.concatenate([known_index, index[best_groups].reshape(len(found), -1)], axis=1)
        similarity, places = jax.lax.top_k(candidates, k)
        return similarity, jnp.take_along_axis(candidate_index, places, axis=1)

    own = jnp.arange(queries.shape[0] * queries.shape[1], dtype=jnp.int32).reshape(queries.shape[:2])
    return jax.lax.map(merge_queries, (nearest, queries, own))


@functools.partial(jax.jit, static_argnames=('k', 'num_classes'))
def _vote(similarity, labels, temperature, k, num_classes):
    """Predicts labels [...] for each size in the ascending tuple k, from neighbours [..., max(k)]."""
    # Similarities relative to the nearest neighbour give the same vote, and no temperature overflows.
    weights = jnp.exp((similarity - similarity[..., :1]) / temperature)
    weights, labels = jnp.moveaxis(weights, -1, 0), jnp.moveaxis(labels, -1, 0)

    def add_neighbour(votes, neighbour):
        weight, label = neighbour
        return votes + jnp.where(label[..., None] == jnp.arange(num_classes), weight[..., None], 0.0), None

    votes = jnp.zeros((*labels.shape[1:], num_classes), jnp.float32)
    predicted = {}
    for start, stop in itertools.pairwise((0, *k)):
        votes, _ = jax.lax.scan(add_neighbour, votes, (weights[start:stop], labels[start:stop]))
        predicted[stop] = jnp.argmax(votes, axis=-1).astype(jnp.int32)
    return predicted


def _normalize(features):
    """Scales features to unit length along the last axis. Zeros stay zeros."""
    # Division by the largest value first keeps the squares in range.
    tiny = jnp.finfo(features.dtype).tiny
    features = features / jnp.maximum(jnp.abs(features).max(axis=-1, keepdims=True), tiny)
    return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), tiny)


def _pad_rows(array, multiple):
    """Appends rows of zeros until the number of rows is divisible by `multiple`."""
    missing = -len(array) % multiple
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array


def _check_pair(bank, queries):
    """Checks that both are matrices of the same width, and converts them to float32."""
    bank, queries = check_features('bank', bank), check_features('queries', queries)
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(
            f'bank has {bank.shape[1]} features and queries {queries.shape[1]}: '
            'they must be equal: take both from the same layer of the same encoder'
        )
    return bank, queries


def _check_neighbours(k, bank_size, exclude_self=False):
    most = bank_size - exclude_self
    if k < 1:
        raise ValueError(f'k={k} must be at least 1: k is a number of neighbours')
    if k > most:
        raise ValueError(
            f'k={k} neighbours requested from a bank of {bank_size}: use k of at most {most} or a larger bank'
        )


def _check_blocks(query_block, bank_block):
    if min(query_block, bank_block) < 1:
        raise ValueError(f'query_block={query_block} and bank_block={bank_block} must be at least 1')


def neighbourhood_agreement(first, second, k: int = 10) -> float:
    """Computes the mean share of its k nearest neighbours that an image has in both of two sets of features.

    The neighbours in each set are those of `nearest_neighbours`. An image is never its own neighbour. The two sets
    may belong to two views of every image, to two layers or to two encoders.

    Args:
        first: [N, F] finite features.
        second: [N, G] finite features of the same images in the same order.
        k: Number of neighbours, in 1..N - 1.

    Returns:
        A share from 0 to 1. Unrelated features have an expected share of k / (N - 1).

    Raises:
        ValueError: Shapes or k break a rule above. The message names the cure.
    """
    if len(first) != len(second):
        raise ValueError(f'{len(first)} features and {len(second)}: pass one per image in both, in the same order')
    neighbours = [nearest_neighbours(features, features, k=k, exclude_self=True)[1] for features in (first, second)]
    # No neighbour occurs twice in one set. One that occurs twice in both together is common to them.
    both = np.sort(np.concatenate(neighbours, axis=1), axis=1)
    return float(np.count_nonzero(both[:, 1:] == both[:, :-1]) / neighbours[0].size)
