"""Similarities of all views of a global batch with each other, and the sums over the mesh that losses need.

Inside `jax.shard_map`, `axis_name` names the mesh axis that splits the batch. Each member of that axis holds B images.
It gathers the rows of the other members.

Below, `N` is the number of images of the global batch. `V` is the number of views of an image. `A = B * V` is the
number of a member's anchors.

All products here have full precision. A temperature of 0.1 multiplies the error of a similarity by ten.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from simclr_jax.ops.precision import at_least_float32, precise_matmul

NORM_FLOOR = 1e-12  # Smallest squared norm that a row is divided by.


def l2_normalize(x: jax.Array) -> jax.Array:
    """Divides each row by its Euclidean norm, sqrt(max(sum x^2, 1e-12)).

    Below that floor the divisor is a constant: a row of zeros stays zero and has a finite gradient.

    Args:
        x: Rows [..., D], float16, bfloat16, float32 or float64.

    Returns:
        Rows [..., D] of unit length, float64 for float64 and float32 otherwise.
    """
    x = at_least_float32(x)
    squared_norm = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squared_norm, NORM_FLOOR))


def gather_rows(rows: jax.Array, axis_name: str | None) -> jax.Array:
    """Gathers the rows of all members of a mesh axis. Gradients flow back to the member that holds the row.

    Args:
        rows: Rows [R, ...] of this member.
        axis_name: Mesh axis that splits the rows. None: `rows` is the whole batch.

    Returns:
        Rows of the global batch [G, ...], in the order of the members.
    """
    return rows if axis_name is None else jax.lax.all_gather(rows, axis_name, tiled=True)


def global_row_indices(count: int, axis_name: str | None) -> jax.Array:
    """Indices of this member's rows among the rows that `gather_rows` returns.

    Args:
        count: Number R of rows of each member.
        axis_name: Mesh axis that splits the rows. None: this member holds the whole batch.

    Returns:
        Indices [R], int32.
    """
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
    return first + jnp.arange(count, dtype=jnp.int32)


def global_mean(values: Any, axis_name: str | None) -> Any:
    """Averages each array over the members of a mesh axis.

    Args:
        values: Array, or tree of arrays, of this member.
        axis_name: Mesh axis to average over. None: the values stay as they are.

    Returns:
        Means of the shapes of `values`, the same on all members.
    """
    return values if axis_name is None else jax.lax.pmean(values, axis_name)


def in_blocks(function: Callable[..., jax.Array], rows: tuple[jax.Array, ...], block_size: int | None) -> jax.Array:
    """Applies a function of rows to blocks of rows, to bound the memory of its intermediate values.

    Args:
        function: Function of arrays [b, ...] that returns one value per row, [b, ...].
        rows: Arrays [R, ...], the arguments of `function`.
        block_size: Rows per block. None: one block of all rows.

    Returns:
        Values of all rows [R, ...].
    """
    if block_size is None:
        return function(*rows)
    return jax.lax.map(lambda row: function(*(part[None] for part in row))[0], rows, batch_size=block_size)


class Similarities(NamedTuple):
    """Similarities of this member's anchors with the global batch. Anchors are in the order (image, view).

    Attributes:
        positives: Similarities [A, V-1] with the other views of the anchor's image.
        candidates: Similarities [A, N*V] with all views of the global batch.
        image: Index [A] of the anchor's image in the global batch, int32.
        views: Number V of views of an image.
    """

    positives: jax.Array
    candidates: jax.Array
    image: jax.Array
    views: int


def compare(z: jax.Array, normalize: bool, axis_name: str | None) -> Similarities:
    """Compares all views of this member with all views of the global batch.

    Args:
        z: Projections [B, V, D].
        normalize: Whether a similarity is the cosine. Otherwise it is the dot product.
        axis_name: Mesh axis that splits the images. None: `z` is the whole batch.

    Raises:
        ValueError: z is not [B, V >= 2, D].
    """
    z = comparable(z, normalize)
    images, views, dimensions = z.shape
    # The reshape [images, views] -> [images * views] keeps each view on the device of its image.
    anchors = z.reshape(images * views, dimensions)
    return Similarities(
        positives=positives_of(z),
        candidates=precise_matmul(anchors, gather_rows(anchors, axis_name).T),
        image=jnp.repeat(global_row_indices(images, axis_name), views),
        views=views,
    )


def comparable(z: jax.Array, normalize: bool) -> jax.Array:
    """Casts projections to at least float32 and scales their rows to unit length if `normalize`.

    Args:
        z: Projections [B, V, D].
        normalize: Whether rows are scaled to unit length.

    Returns:
        Projections [B, V, D], whose products are the similarities.

    Raises:
        ValueError: z is not [B, V >= 2, D].
    """
    if z.ndim != 3 or z.shape[1] < 2:
        raise ValueError(f'z has shape {z.shape}; it must be [images, views, dimensions] with at least two views')
    return l2_normalize(z) if normalize else at_least_float32(z)


def positives_of(z: jax.Array) -> jax.Array:
    """Multiplies each view with the other views of its image.

    Args:
        z: Projections [B, V, D].

    Returns:
        Products [B*V, V-1].
    """
    views = z.shape[1]
    # View v is paired with views v + 1, v + 2, ... (cyclic). That gives each ordered pair once, without a product of
    # all views with all views.
    products = [jnp.sum(z * jnp.roll(z, -shift, axis=1), axis=-1) for shift in range(1, views)]
    return jnp.stack(products, axis=-1).reshape(-1, views - 1)


def are_negatives(similarities: Similarities) -> jax.Array:
    """Tells the candidates that are views of another image than the anchor.

    Args:
        similarities: Result of `compare`.

    Returns:
        Mask [A, N*V], bool.

    Raises:
        ValueError: The global batch is a single image.
    """
    candidate = jnp.arange(similarities.candidates.shape[1], dtype=jnp.int32)
    _check_negatives(candidate.size // similarities.views)
    return similarities.image[:, None] != candidate // similarities.views


def _check_negatives(images: int) -> None:
    if images == 1:
        raise ValueError('a global batch of one image has no negatives; use at least two images')


def contrast_metrics(logits: jax.Array, similarities: Similarities) -> dict[str, jax.Array]:
    """Measures how well each first view finds its image among the N second views.

    Args:
        logits: Logits [A, N*V] of the anchors.
        similarities: Result of `compare`.

    Returns:
        'contrast_accuracy' [B], 1 for a view that finds its image and 0 otherwise. 'contrast_entropy' [B], the entropy
        of the softmax over the second views in nats.
    """
    views = similarities.views
    return metrics_of_choice(logits[::views, 1::views], similarities.image[::views])


def metrics_of_choice(logits: jax.Array, own: jax.Array) -> dict[str, jax.Array]:
    """Measures how well rows of logits select their own candidate.

    Args:
        logits: Logits [..., N] of N candidates.
        own: Index [...] of the own candidate.

    Returns:
        'contrast_accuracy' [...], 1 for a row whose own candidate has the largest logit and 0 otherwise.
        'contrast_entropy' [...], the entropy of its softmax in nats.
    """
    found = jax.lax.argmax(logits, logits.ndim - 1, jnp.int32) == own
    probability = jax.nn.softmax(logits, axis=-1)
    # The reference adds 1e-8 against the logarithm of zero, which is part of its published figures.
    entropy = -jnp.sum(probability * jnp.log(probability + 1e-8), axis=-1)
    return {'contrast_accuracy': found.astype(logits.dtype), 'contrast_entropy': entropy}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def negatives_in_blocks(z: jax.Array, axis_name: str | None, block_size: int) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the log-sum-exp over the negatives of each anchor, in blocks of anchors.

    The memory is that of the logits of one block, in the forward and in the backward pass. The metrics have no
    gradient.

    Args:
        z: Scaled projections [B, V, D], whose products are the logits.
        axis_name: Mesh axis that splits the images. None: `z` is the whole batch.
        block_size: Anchors per block, at least 1.

    Returns:
        Log-sum-exps [B*V], and the metrics of `contrast_metrics`, [B] each.

    Raises:
        ValueError: block_size is below 1, or the global batch is a single image.
    """
    return _in_blocks_forward(z, axis_name, block_size)[0]


def _in_blocks_forward(z, axis_name, block_size):
    if block_size < 1:
        raise ValueError(f'block_size={block_size}: must be at least 1; None computes all logits at once')
    views = z.shape[1]
    candidates = _gather_views(z, axis_name)
    images = len(candidates) // views
    _check_negatives(images)

    def of_any_view(anchor):
        row, image = anchor
        logits = precise_matmul(row, candidates.T)
        return jax.nn.logsumexp(_without_own(logits, image, images))

    def of_first_view(anchor):
        row, image = anchor
        logits = precise_matmul(row, candidates.T)
        metrics = metrics_of_choice(logits[images : 2 * images], image)
        return jax.nn.logsumexp(_without_own(logits, image, images)), metrics

    image = global_row_indices(len(z), axis_name)
    first, metrics = jax.lax.map(of_first_view, (z[:, 0], image), batch_size=block_size)
    others = [jax.lax.map(of_any_view, (z[:, view], image), batch_size=block_size) for view in range(1, views)]
    negatives = jnp.stack([first, *others], axis=1)
    return (negatives.reshape(-1), metrics), (z, candidates, negatives)


def _in_blocks_backward(axis_name, block_size, residuals, gradients):
    z, candidates, negatives = residuals
    weights = gradients[0].reshape(negatives.shape)
    images = len(candidates) // z.shape[1]
    all_negatives, all_weights = _gather_views(negatives, axis_name), _gather_views(weights, axis_name)

    def pull(anchor):
        row, image, negatives, weight = anchor
        logits = _without_own(precise_matmul(row, candidates.T), image, images)
        # The logit of (i, k) equals that of (k, i). So the gradient that the sum of anchor k passes to row i needs no
        # second product. Members need not add up their gradients of each other's rows either.
        share = weight * jnp.exp(logits - negatives) + all_weights * jnp.exp(logits - all_negatives)
        return precise_matmul(share, candidates)

    image = jnp.repeat(global_row_indices(len(z), axis_name), z.shape[1])
    anchors = (z.reshape(-1, z.shape[2]), image, negatives.reshape(-1), weights.reshape(-1))
    return (jax.lax.map(pull, anchors, batch_size=block_size).reshape(z.shape),)


negatives_in_blocks.defvjp(_in_blocks_forward, _in_blocks_backward)


def _gather_views(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Gathers [B, V, ...] of all members into [V*N, ...], so that all second views are adjacent."""
    return gather_rows(x, axis_name).swapaxes(0, 1).reshape(-1, *x.shape[2:])


def _without_own(logits: jax.Array, image: jax.Array, images: int) -> jax.Array:
    """Sets an anchor's logits [V*N] to -inf where the candidate is a view of the anchor's own image."""
    candidate = jnp.arange(logits.size, dtype=jnp.int32) % images
    return jnp.where(candidate == image, -jnp.inf, logits)
