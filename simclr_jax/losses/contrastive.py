"""Contrastive losses over the views of a global batch.

The losses take projections `z [B, V, D]` of B images with V >= 2 views each. Inside `jax.shard_map`, `axis_name` names
the mesh axis that splits the batch. The projections of the other members of this axis are then gathered. So every view
of the global batch is a candidate for every anchor. Gradients flow back through the gather. Every loss returns
`(loss, metrics)`, scalars that are the same on all members. `N` below is the number of images of the global batch.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from simclr_jax.ops.precision import precise_matmul
from simclr_jax.ops.similarities import (
    Similarities,
    are_negatives,
    comparable,
    compare,
    contrast_metrics,
    gather_rows,
    global_mean,
    global_row_indices,
    in_blocks,
    l2_normalize,
    metrics_of_choice,
    negatives_in_blocks,
    positives_of,
)


def nt_xent(
    z: jax.Array,
    *,
    temperature: float,
    normalize: bool = True,
    axis_name: str | None = None,
    block_size: int | None = None,
    queue: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Normalised temperature-scaled cross-entropy (SimCLR, arXiv 2002.05709, equation 1).

    For an anchor view i and another view j of the same image

        l(i, j) = -log( exp(s_ij / T) / sum_{k != i} exp(s_ik / T) ),

    averaged over all ordered pairs (i, j) of the global batch. With V > 2 the denominator also holds the other
    positives of the anchor, as the formula says. The published TensorFlow program minimises twice this mean for V = 2.

    Args:
        z: Projections of this member's images, [B, V, D].
        temperature: Temperature T > 0.
        normalize: Whether s is the cosine similarity. Otherwise it is the dot product.
        axis_name: Mesh axis that splits the batch, inside `jax.shard_map`. None if z is the whole batch.
        block_size: Anchors per block, at least 1. Only one block of logits, block_size x N V, is in memory at a time,
            and the backward pass recomputes it. None: one block of all B V anchors. The results are equal except for
            rounding, but the metrics have no gradient in blocks.
        queue: Further negatives of every anchor [K, D], the same on all members: the memory of SimCLRv2 (arXiv
            2006.10029, section 2). With `normalize` its rows have unit length. None: there are none.

    Returns:
        The loss, and the metrics {'contrast_accuracy', 'contrast_entropy'}. They describe the softmax in which the
        first view of an image selects one of the N second views: the share of images whose own second view has the
        largest logit, and the mean entropy in nats.

    Raises:
        ValueError: z is not [B, V >= 2, D], the global batch is one image, or block_size is below 1.

    Example:
        The views of each image coincide, and the two images are orthogonal. The loss is log(1 + 2 exp(-1 / T)).

        >>> z = jnp.array([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
        >>> loss, metrics = jax.jit(nt_xent)(z, temperature=0.5)
        >>> print(f'{loss:.4f} {metrics["contrast_accuracy"]:.0f}')
        0.2395 1
    """
    if block_size is None:
        similarities = compare(z, normalize, axis_name)
        positives = similarities.positives / temperature
        logits = similarities.candidates / temperature
        negatives = jax.nn.logsumexp(logits, axis=1, where=are_negatives(similarities))
        metrics = contrast_metrics(logits, similarities)
    else:
        # Each factor of a logit carries the square root of 1 / T. So the gradient of T stays outside of the blocks.
        z = comparable(z, normalize) * temperature**-0.5
        positives = positives_of(z)
        # The type of a function is lost between `partial` and `custom_vjp`.
        found: Any = negatives_in_blocks(z, axis_name, block_size)
        negatives, metrics = found
    if queue is not None:
        anchors = comparable(z, normalize) / temperature if block_size is None else z * temperature**-0.5
        negatives = jnp.logaddexp(negatives, _log_sum_over(queue, anchors, block_size))
    # l = log(1 + sum over the others) keeps its digits even if the positive outweighs all others. The difference
    # of the log-sum-exp, which is about s / T, and s / T would be mostly rounding.
    loss = jnp.mean(jax.nn.softplus(_log_rivals(negatives, positives) - positives))
    return _global_means(loss, metrics, axis_name)


def nt_logistic(
    z: jax.Array,
    *,
    temperature: float,
    normalize: bool = True,
    semi_hard: bool = False,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Normalised temperature-scaled logistic loss (SimCLR, arXiv 2002.05709, Tables 2 and 4), minimised.

    The loss of a positive pair (i, j) is -log sigmoid(s_ij / T) plus the mean over the negatives k of
    -log sigmoid(-s_ik / T). So positives and negatives have the same weight at every batch size. The negatives are the
    views of other images. The loss is the mean over all ordered positive pairs.

    Args:
        z: Projections of this member's images, [B, V, D].
        temperature: Temperature T > 0.
        normalize: Whether s is the cosine similarity. Otherwise it is the dot product.
        semi_hard: Whether one semi-hard negative replaces the mean over the negatives. It is the most similar one among
            the negatives that are less similar to i than j is. A pair without such a negative keeps only its positive
            term.
        axis_name: Mesh axis that splits the batch, inside `jax.shard_map`. None if z is the whole batch.

    Returns:
        The loss, and the metrics of `nt_xent`.

    Raises:
        ValueError: z is not [B, V >= 2, D], or the global batch is one image.
    """
    similarities = compare(z, normalize, axis_name)
    negative = are_negatives(similarities)
    logits = similarities.candidates / temperature
    attraction = -jax.nn.log_sigmoid(similarities.positives / temperature)
    if semi_hard:
        hardest, exists = _semi_hard_negatives(similarities, negative)
        repulsion = jnp.where(exists, -jax.nn.log_sigmoid(-hardest / temperature), 0.0)
    else:
        repulsion = jnp.mean(-jax.nn.log_sigmoid(-logits), axis=1, where=negative, keepdims=True)
    loss = jnp.mean(attraction + repulsion)
    return _global_means(loss, contrast_metrics(logits, similarities), axis_name)


def margin_triplet(
    z: jax.Array,
    *,
    margin: float,
    normalize: bool = True,
    semi_hard: bool = False,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Marginal triplet loss (SimCLR, arXiv 2002.05709, Tables 2 and 4), minimised.

    The loss is the mean of max(s_ik - s_ij + m, 0) over all ordered positive pairs (i, j) and all their negatives k.
    The negatives are the views of other images. Terms that are zero count in the mean.

    Args:
        z: Projections of this member's images, [B, V, D].
        margin: Margin m > 0 in units of s. Cosine similarities differ by at most 2.
        normalize: Whether s is the cosine similarity. Otherwise it is the dot product.
        semi_hard: Whether each pair uses only its semi-hard negative (FaceNet, arXiv 1503.03832). It is the most
            similar one among the negatives that are less similar to i than j is. It adds to the loss while it lies
            within the margin. A pair without such a negative adds zero. The mean is still over all pairs.
        axis_name: Mesh axis that splits the batch, inside `jax.shard_map`. None if z is the whole batch.

    Returns:
        The loss, and the metrics of `nt_xent` at temperature 1.

    Raises:
        ValueError: z is not [B, V >= 2, D], or the global batch is one image.
    """
    similarities = compare(z, normalize, axis_name)
    negative = are_negatives(similarities)
    if semi_hard:
        hardest, exists = _semi_hard_negatives(similarities, negative)
        hinge = jnp.where(exists, jax.nn.relu(hardest - similarities.positives + margin), 0.0)
        loss = jnp.mean(hinge)
    else:
        # One positive per term. All positives at once would need V - 1 times the memory of the logits.
        hinges = [
            jnp.mean(jax.nn.relu(similarities.candidates - positive[:, None] + margin), where=negative)
            for positive in similarities.positives.T
        ]
        loss = sum(hinges[1:], start=hinges[0]) / len(hinges)
    return _global_means(loss, contrast_metrics(similarities.candidates, similarities), axis_name)


def info_nce(
    queries: jax.Array,
    keys: jax.Array,
    queue: jax.Array | None = None,
    *,
    temperature: float,
    in_batch: bool = False,
    axis_name: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """InfoNCE with keys of a momentum encoder (MoCo, arXiv 1911.05722, equation 1).

    A query selects its own image's key among the classes. These are that key and the queue. With `in_batch` they are
    the current keys of all images of the global batch and the queue (MoCo v3, arXiv 2104.02057, without a queue).

    Args:
        queries: Projections of Q views of this member's images, [B, Q, D].
        keys: Projections of another view by the momentum encoder, [B, D]. They pass no gradient.
        queue: Earlier keys [K, D], rows of unit length, the same on all members. None: there is no queue.
        temperature: Temperature T > 0 of the cosine similarities.
        in_batch: Whether the current keys of other images are negatives.
        axis_name: Mesh axis that splits the batch, inside `jax.shard_map`. None if the arrays are the whole batch.

    Returns:
        The mean cross-entropy over all queries of the global batch, and the metrics {'contrast_accuracy',
        'contrast_entropy'}: the share of queries whose own key has the largest logit, and the mean entropy in nats.

    Raises:
        ValueError: There is no negative, because there is no queue and `in_batch` is false.
    """
    if queue is None and not in_batch:
        raise ValueError('InfoNCE without a queue has no negatives; give a queue, or set in_batch')
    queries, keys = l2_normalize(queries), l2_normalize(jax.lax.stop_gradient(keys))
    if in_batch:
        logits = [precise_matmul(queries, gather_rows(keys, axis_name).T)]
        own = global_row_indices(len(keys), axis_name)
    else:
        logits = [jnp.sum(queries * keys[:, None], axis=-1, keepdims=True)]
        own = jnp.zeros(len(keys), jnp.int32)
    if queue is not None:
        logits.append(precise_matmul(queries, queue.T))
    logits = jnp.concatenate(logits, axis=-1) / temperature
    own = jnp.broadcast_to(own[:, None], queries.shape[:2])
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, own))
    return _global_means(loss, metrics_of_choice(logits, own), axis_name)


def _log_sum_over(queue: jax.Array, anchors: jax.Array, block_size: int | None) -> jax.Array:
    """Log-sum-exp [A] of the logits of anchors [B, V, D] with a queue [K, D]."""

    def of_rows(rows: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(precise_matmul(rows, queue.T), axis=-1)

    rows = anchors.reshape(-1, anchors.shape[-1])
    return in_blocks(of_rows if block_size is None else jax.checkpoint(of_rows), (rows,), block_size)


def _log_rivals(negatives: jax.Array, positives: jax.Array) -> jax.Array:
    """Log-sum-exp [A, V-1] of the rivals of each positive: the negatives and the other positives of its anchor.

    Args:
        negatives: Log-sum-exp over the negatives of each anchor, [A].
        positives: Logits of the positives of each anchor, [A, V-1].
    """
    rivals = []
    for index in range(positives.shape[1]):
        others = jnp.delete(positives, index, axis=1)
        rivals.append(jax.nn.logsumexp(jnp.concatenate([negatives[:, None], others], axis=1), axis=1))
    return jnp.stack(rivals, axis=1)


def _semi_hard_negatives(similarities: Similarities, negative: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Largest negative similarity below each positive similarity, [A, V-1], and whether it exists, bool [A, V-1]."""
    largest = []
    for positive in similarities.positives.T:
        eligible = negative & (similarities.candidates < positive[:, None])
        largest.append(jnp.max(similarities.candidates, axis=1, where=eligible, initial=-jnp.inf))
    largest = jnp.stack(largest, axis=1)
    exists = jnp.isfinite(largest)
    # The gradient of an infinite value would be NaN even where the value is not selected.
    return jnp.where(exists, largest, 0.0), exists


def _global_means(
    loss: jax.Array, metrics: dict[str, jax.Array], axis_name: str | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Means of the loss and of the metrics over all members."""
    return global_mean((loss, jax.tree.map(jnp.mean, metrics)), axis_name)
