"""Contrastive losses over the views of a global batch, and the cross-entropies of the supervised heads.

The contrastive losses take projections `z [B, V, D]`: B images, V >= 2 views of each. Inside
`jax.shard_map`, `axis_name` names the mesh axis over which the batch is split; the projections of the other
members are then gathered, so that every view of the global batch is a candidate for every anchor, and
gradients flow back through the gather. Every loss returns `(loss, metrics)`, scalars that are the same on
all members. `N` below is the number of images of the global batch.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

NORM_FLOOR = 1e-12  # smallest squared norm that a projection is divided by
# A TPU would round the factors to bfloat16, and a temperature of 0.1 multiplies the error by ten.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def l2_normalize(x: jax.Array) -> jax.Array:
    """Divides every row by its Euclidean norm, sqrt(max(sum x^2, 1e-12)).

    Under the floor the divisor is a constant: a row of zeros stays zero and has a finite gradient.

    Args:
        x: [..., D], float16, bfloat16, float32 or float64.

    Returns:
        [..., D], float64 for float64 and float32 otherwise.
    """
    x = _full_precision(x)
    squared_norm = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squared_norm, NORM_FLOOR))


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
        similarities = _similarities(z, normalize, axis_name)
        positives = similarities.positives / temperature
        logits = similarities.candidates / temperature
        negatives = jax.nn.logsumexp(logits, axis=1, where=_negatives(similarities))
        metrics = _contrast_metrics(logits, similarities)
    else:
        # Each factor of a logit carries half of the temperature, so that its gradient stays outside of the blocks.
        z = _comparable(z, normalize) * temperature**-0.5
        positives = _positives(z)
        negatives, metrics = _negatives_in_blocks(z, axis_name, block_size)
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
    similarities = _similarities(z, normalize, axis_name)
    negative = _negatives(similarities)
    logits = similarities.candidates / temperature
    attraction = -jax.nn.log_sigmoid(similarities.positives / temperature)
    if semi_hard:
        hardest, exists = _semi_hard_negatives(similarities, negative)
        repulsion = jnp.where(exists, -jax.nn.log_sigmoid(-hardest / temperature), 0.0)
    else:
        repulsion = jnp.mean(-jax.nn.log_sigmoid(-logits), axis=1, where=negative, keepdims=True)
    loss = jnp.mean(attraction + repulsion)
    return _global_means(loss, _contrast_metrics(logits, similarities), axis_name)


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
    similarities = _similarities(z, normalize, axis_name)
    negative = _negatives(similarities)
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
    return _global_means(loss, _contrast_metrics(similarities.candidates, similarities), axis_name)


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Weighted mean cross-entropy of integer labels, in nats.

    Args:
        logits: [..., K], any float type; computed in float32, or float64 where they are.
        labels: [...], integers below K; negative: no label, weight 0.
        weights: [...], >= 0; None: all 1.

    Returns:
        sum(weight * cross-entropy) / sum(weight), a scalar; 0 where all weights are 0.
    """
    values = optax.softmax_cross_entropy_with_integer_labels(_full_precision(logits), jnp.maximum(labels, 0))
    return _labelled_mean(values, labels, weights)


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Weighted mean over images of the summed binary cross-entropies of their classes, in nats.

    Args:
        logits: [..., K], any float type; computed in float32, or float64 where they are.
        labels: [..., K], 1: present, 0: absent, negative: ignored. An image whose classes are all ignored has
            weight 0.
        weights: [...], >= 0; None: all 1.

    Returns:
        sum(weight * sum over the classes) / sum(weight), a scalar; 0 where all weights are 0.
    """
    logits = _full_precision(logits)
    values = optax.sigmoid_binary_cross_entropy(logits, labels.astype(logits.dtype))
    per_image = jnp.sum(values, axis=-1, where=labels >= 0)
    return _labelled_mean(per_image, jnp.max(labels, axis=-1), weights)


def accuracy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Weighted fraction of rows whose largest logit is at their label.

    Args:
        logits: [..., K].
        labels: [...], integers below K; negative: no label, weight 0.
        weights: [...], >= 0; None: all 1.

    Returns:
        A float32 scalar from 0 to 1; 0 where all weights are 0.
    """
    correct = jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels
    return _labelled_mean(correct.astype(jnp.float32), labels, weights)


class _Similarities(NamedTuple):
    """Similarities of the local anchors, A = B * V rows in the order (image, view), with the global batch."""

    positives: jax.Array  # [A, V-1], to the other views of the anchor's image
    candidates: jax.Array  # [A, N*V], to every view of the global batch
    image: jax.Array  # [A] int32, index of the anchor's image in the global batch
    views: int


def _similarities(z: jax.Array, normalize: bool, axis_name: str | None) -> _Similarities:
    z = _comparable(z, normalize)
    images, views, dimensions = z.shape
    # [images, views] -> [images * views] keeps a view on the device of its image.
    anchors = z.reshape(images * views, dimensions)
    return _Similarities(
        positives=_positives(z),
        candidates=_matmul(anchors, _gather(anchors, axis_name).T),
        image=jnp.repeat(_image_indices(images, axis_name), views),
        views=views,
    )


def _comparable(z: jax.Array, normalize: bool) -> jax.Array:
    """z in full precision, its rows of unit length if so asked."""
    if z.ndim != 3 or z.shape[1] < 2:
        raise ValueError(f'z has shape {z.shape}; it must be [images, views, dimensions] with at least two views')
    return l2_normalize(z) if normalize else _full_precision(z)


def _positives(z: jax.Array) -> jax.Array:
    """Products of every view of z [B, V, D] with the other views of its image, [B*V, V-1]."""
    views = z.shape[1]
    # View v against view v + 1, v + 2, ... (cyclic): each ordered pair once, without a product of all.
    products = [jnp.sum(z * jnp.roll(z, -shift, axis=1), axis=-1) for shift in range(1, views)]
    return jnp.stack(products, axis=-1).reshape(-1, views - 1)


def _gather(rows: jax.Array, axis_name: str | None) -> jax.Array:
    """The rows of all members, in the order of the global batch."""
    return rows if axis_name is None else jax.lax.all_gather(rows, axis_name, tiled=True)


def _image_indices(images: int, axis_name: str | None) -> jax.Array:
    """[B] int32, where this member's images are in the global batch."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * images
    return first + jnp.arange(images, dtype=jnp.int32)


def _negatives(similarities: _Similarities) -> jax.Array:
    """[A, N*V] bool: the candidates that are views of another image."""
    candidate = jnp.arange(similarities.candidates.shape[1], dtype=jnp.int32)
    _check_negatives(candidate.size // similarities.views)
    return similarities.image[:, None] != candidate // similarities.views


def _check_negatives(images: int) -> None:
    if images == 1:
        raise ValueError('a global batch of one image has no negatives; use at least two images')


def _log_rivals(negatives: jax.Array, positives: jax.Array) -> jax.Array:
    """Log-sum-exp of what a positive competes with: the negatives [A] and the other positives [A, V-1]."""
    rivals = []
    for index in range(positives.shape[1]):
        others = jnp.delete(positives, index, axis=1)
        rivals.append(jax.nn.logsumexp(jnp.concatenate([negatives[:, None], others], axis=1), axis=1))
    return jnp.stack(rivals, axis=1)


def _semi_hard_negatives(similarities: _Similarities, negative: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Largest negative similarity below each positive one, [A, V-1], and whether there is any."""
    largest = []
    for positive in similarities.positives.T:
        eligible = negative & (similarities.candidates < positive[:, None])
        largest.append(jnp.max(similarities.candidates, axis=1, where=eligible, initial=-jnp.inf))
    largest = jnp.stack(largest, axis=1)
    exists = jnp.isfinite(largest)
    # A finite stand-in: the gradient of an infinite one would be NaN even where it is not selected.
    return jnp.where(exists, largest, 0.0), exists


def _contrast_metrics(logits: jax.Array, similarities: _Similarities) -> dict[str, jax.Array]:
    """Accuracy and entropy of each first view [B] among second views [N], from all logits [A, N*V]."""
    views = similarities.views
    return _among_second_views(logits[::views, 1::views], similarities.image[::views])


def _among_second_views(logits: jax.Array, image: jax.Array) -> dict[str, jax.Array]:
    """Accuracy and entropy [...] of first views of the images [...], from their logits [..., N]."""
    found = jax.lax.argmax(logits, logits.ndim - 1, jnp.int32) == image
    probability = jax.nn.softmax(logits, axis=-1)
    # 1e-8: the reference's guard, part of the published number.
    entropy = -jnp.sum(probability * jnp.log(probability + 1e-8), axis=-1)
    return {'contrast_accuracy': found.astype(logits.dtype), 'contrast_entropy': entropy}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _negatives_in_blocks(
    z: jax.Array, axis_name: str | None, block_size: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Log-sum-exp over every anchor's negatives, [B*V], and the first views' metrics, [B] each.

    Args:
        z: [B, V, D], whose products are the logits.
        axis_name: mesh axis that splits the batch.
        block_size: anchors at a time.
    """
    return _negatives_in_blocks_forward(z, axis_name, block_size)[0]


def _negatives_in_blocks_forward(z, axis_name, block_size):
    if block_size < 1:
        raise ValueError(f'block_size={block_size}: must be at least 1; None computes all logits at once')
    views = z.shape[1]
    candidates = _gather_views(z, axis_name)
    images = len(candidates) // views
    _check_negatives(images)

    def of_any_view(anchor):
        row, image = anchor
        logits = _matmul(row, candidates.T)
        return jax.nn.logsumexp(_without_own(logits, image, images))

    def of_first_view(anchor):
        row, image = anchor
        logits = _matmul(row, candidates.T)
        metrics = _among_second_views(logits[images : 2 * images], image)
        return jax.nn.logsumexp(_without_own(logits, image, images)), metrics

    image = _image_indices(len(z), axis_name)
    first, metrics = jax.lax.map(of_first_view, (z[:, 0], image), batch_size=block_size)
    others = [jax.lax.map(of_any_view, (z[:, view], image), batch_size=block_size) for view in range(1, views)]
    negatives = jnp.stack([first, *others], axis=1)
    return (negatives.reshape(-1), metrics), (z, candidates, negatives)


def _negatives_in_blocks_backward(axis_name, block_size, residuals, gradients):
    z, candidates, negatives = residuals
    weights = gradients[0].reshape(negatives.shape)
    images = len(candidates) // z.shape[1]
    all_negatives, all_weights = _gather_views(negatives, axis_name), _gather_views(weights, axis_name)

    def pull(anchor):
        row, image, negatives, weight = anchor
        logits = _without_own(_matmul(row, candidates.T), image, images)
        # The logit of i and k is that of k and i: what k's sum passes to i needs no second product, nor, with
        # several members, the sum of everyone's gradients for everyone's rows.
        share = weight * jnp.exp(logits - negatives) + all_weights * jnp.exp(logits - all_negatives)
        return _matmul(share, candidates)

    image = jnp.repeat(_image_indices(len(z), axis_name), z.shape[1])
    anchors = (z.reshape(-1, z.shape[2]), image, negatives.reshape(-1), weights.reshape(-1))
    return (jax.lax.map(pull, anchors, batch_size=block_size).reshape(z.shape),)


_negatives_in_blocks.defvjp(_negatives_in_blocks_forward, _negatives_in_blocks_backward)


def _gather_views(x: jax.Array, axis_name: str | None) -> jax.Array:
    """[B, V, ...] of every member -> [V*N, ...]: the second views lie side by side."""
    return _gather(x, axis_name).swapaxes(0, 1).reshape(-1, *x.shape[2:])


def _without_own(logits: jax.Array, image: jax.Array, images: int) -> jax.Array:
    """An anchor's logits with all views [V*N], -inf for those of its own image."""
    candidate = jnp.arange(logits.size, dtype=jnp.int32) % images
    return jnp.where(candidate == image, -jnp.inf, logits)


def _global_means(
    loss: jax.Array, metrics: dict[str, jax.Array], axis_name: str | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss, and the means of the metrics, over all members."""
    means = loss, jax.tree.map(jnp.mean, metrics)
    return means if axis_name is None else jax.lax.pmean(means, axis_name)


def _labelled_mean(values: jax.Array, labels: jax.Array, weights: jax.Array | None) -> jax.Array:
    labelled = (labels >= 0).astype(values.dtype)
    weights = labelled if weights is None else labelled * weights.astype(values.dtype)
    total = jnp.sum(weights)
    return jnp.sum(weights * values) / jnp.where(total > 0, total, 1.0)


def _full_precision(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
