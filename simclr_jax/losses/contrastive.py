"""Contrastive losses over the views of a global batch.

The losses take projections `z [B, V, D]`: B images, V >= 2 views of each. Inside
`jax.shard_map`, `axis_name` names the mesh axis over which the batch is split; the projections of the other
members are then gathered, so that every view of the global batch is a candidate for every anchor, and
gradients flow back through the gather. Every loss returns `(loss, metrics)`, scalars that are the same on
all members. `N` below is the number of images of the global batch.
"""

import jax
import jax.numpy as jnp

from simclr_jax.ops.similarities import (
    Similarities,
    are_negatives,
    comparable,
    compare,
    contrast_metrics,
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
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Normalised temperature-scaled cross-entropy (SimCLR, arXiv 2002.05709, equation 1).

    For an anchor view i and another view j of the same image

        l(i, j) = -log( exp(s_ij / T) / sum_{k != i} exp(s_ik / T) ),

    averaged over all ordered pairs (i, j) of the global batch. With V > 2 the denominator holds the
    anchor's other positives too, as the formula says. The published TensorFlow program minimises twice
    this mean for V = 2.

    Args:
        z: [B, V, D] projections of this member's images.
        temperature: T > 0.
        normalize: whether s is the cosine similarity; otherwise the dot product.
        axis_name: mesh axis that splits the batch, inside `jax.shard_map`; None where z is the whole batch.
        block_size: anchors whose logits are in memory at a time, block_size x N V of them, forward and again
            backward; None: all B V anchors'. The numbers are the same but for rounding, except that in
            blocks the metrics have no gradient.

    Returns:
        The loss, and {'contrast_accuracy', 'contrast_entropy'} of view 1 looking for its image among the
        N second views: the fraction found, and the entropy of that softmax in nats.

    Raises:
        ValueError: z is not [B, V >= 2, D], the global batch is one image, or block_size is below 1.
    """
    if block_size is None:
        similarities = compare(z, normalize, axis_name)
        positives = similarities.positives / temperature
        logits = similarities.candidates / temperature
        negatives = jax.nn.logsumexp(logits, axis=1, where=are_negatives(similarities))
        metrics = contrast_metrics(logits, similarities)
    else:
        # Each factor of a logit carries half of the temperature, so that its gradient stays outside of the blocks.
        z = comparable(z, normalize) * temperature**-0.5
        positives = positives_of(z)
        negatives, metrics = negatives_in_blocks(z, axis_name, block_size)
    # l = log(1 + sum over the others), which keeps its digits where the positive outweighs them all; the
    # difference of a log-sum-exp of about s / T and s / T would leave rounding.
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

    For every positive pair (i, j): -log sigmoid(s_ij / T), plus the mean over the negatives k of
    -log sigmoid(-s_ik / T), so that positives and negatives weigh the same at every batch size. Negatives
    are the views of other images. The loss is the mean over all ordered positive pairs.

    Args:
        z: [B, V, D] projections of this member's images.
        temperature: T > 0.
        normalize: whether s is the cosine similarity; otherwise the dot product.
        semi_hard: replace the mean over the negatives by the pair's one semi-hard negative: the most
            similar of those that are less similar to i than j is. A pair that has none keeps its positive
            term alone.
        axis_name: mesh axis that splits the batch, inside `jax.shard_map`; None where z is the whole batch.

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

    max(s_ik - s_ij + m, 0) for every ordered positive pair (i, j) and every negative k, a view of another
    image; the mean over all of them, those at zero included.

    Args:
        z: [B, V, D] projections of this member's images.
        margin: m > 0, in units of s (cosine similarities differ by at most 2).
        normalize: whether s is the cosine similarity; otherwise the dot product.
        semi_hard: use, for every pair, its one semi-hard negative instead (FaceNet, arXiv 1503.03832): the
            most similar of those that are less similar to i than j is. It counts while it lies within
            the margin; a pair that has none adds zero. The mean is still over all pairs.
        axis_name: mesh axis that splits the batch, inside `jax.shard_map`; None where z is the whole batch.

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
        # One positive at a time: all of them at once would need V - 1 times the memory of the logits.
        hinges = [
            jnp.mean(jax.nn.relu(similarities.candidates - positive[:, None] + margin), where=negative)
            for positive in similarities.positives.T
        ]
        loss = sum(hinges) / len(hinges)
    return _global_means(loss, contrast_metrics(similarities.candidates, similarities), axis_name)


def _log_rivals(negatives: jax.Array, positives: jax.Array) -> jax.Array:
    """Log-sum-exp of what a positive competes with: the negatives [A] and the other positives [A, V-1]."""
    rivals = []
    for index in range(positives.shape[1]):
        others = jnp.delete(positives, index, axis=1)
        rivals.append(jax.nn.logsumexp(jnp.concatenate([negatives[:, None], others], axis=1), axis=1))
    return jnp.stack(rivals, axis=1)


def _semi_hard_negatives(similarities: Similarities, negative: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Largest negative similarity below each positive one, [A, V-1], and whether there is any."""
    largest = []
    for positive in similarities.positives.T:
        eligible = negative & (similarities.candidates < positive[:, None])
        largest.append(jnp.max(similarities.candidates, axis=1, where=eligible, initial=-jnp.inf))
    largest = jnp.stack(largest, axis=1)
    exists = jnp.isfinite(largest)
    # A finite stand-in: the gradient of an infinite one would be NaN even where it is not selected.
    return jnp.where(exists, largest, 0.0), exists


def _global_means(
    loss: jax.Array, metrics: dict[str, jax.Array], axis_name: str | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss, and the means of the metrics, over all members."""
    means = loss, jax.tree.map(jnp.mean, metrics)
    return means if axis_name is None else jax.lax.pmean(means, axis_name)
