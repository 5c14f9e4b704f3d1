"""How similar all views of a global batch are to all others: whole, or so many anchors at a time.

Inside `jax.shard_map`, `axis_name` names the mesh axis over which the batch is split; what the other members have is
gathered. `N` below is the number of images of the global batch, `A` of a member's anchors.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

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
    x = full_precision(x)
    squared_norm = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squared_norm, NORM_FLOOR))


def full_precision(x: jax.Array) -> jax.Array:
    """float64 stays, all else becomes float32."""
    return x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


class Similarities(NamedTuple):
    """Similarities of the local anchors, A = B * V rows in the order (image, view), with the global batch."""

    positives: jax.Array  # [A, V-1], to the other views of the anchor's image
    candidates: jax.Array  # [A, N*V], to every view of the global batch
    image: jax.Array  # [A] int32, index of the anchor's image in the global batch
    views: int


def compare(z: jax.Array, normalize: bool, axis_name: str | None) -> Similarities:
    """All views z [B, V, D] of this member with all of the global batch, by cosine if `normalize`.

    Raises:
        ValueError: z is not [B, V >= 2, D].
    """
    z = comparable(z, normalize)
    images, views, dimensions = z.shape
    # [images, views] -> [images * views] keeps a view on the device of its image.
    anchors = z.reshape(images * views, dimensions)
    return Similarities(
        positives=positives_of(z),
        candidates=_matmul(anchors, _gather(anchors, axis_name).T),
        image=jnp.repeat(_image_indices(images, axis_name), views),
        views=views,
    )


def comparable(z: jax.Array, normalize: bool) -> jax.Array:
    """z in full precision, its rows of unit length if so asked."""
    if z.ndim != 3 or z.shape[1] < 2:
        raise ValueError(f'z has shape {z.shape}; it must be [images, views, dimensions] with at least two views')
    return l2_normalize(z) if normalize else full_precision(z)


def positives_of(z: jax.Array) -> jax.Array:
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


def are_negatives(similarities: Similarities) -> jax.Array:
    """[A, N*V] bool: the candidates that are views of another image."""
    candidate = jnp.arange(similarities.candidates.shape[1], dtype=jnp.int32)
    _check_negatives(candidate.size // similarities.views)
    return similarities.image[:, None] != candidate // similarities.views


def _check_negatives(images: int) -> None:
    if images == 1:
        raise ValueError('a global batch of one image has no negatives; use at least two images')


def contrast_metrics(logits: jax.Array, similarities: Similarities) -> dict[str, jax.Array]:
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
def negatives_in_blocks(z: jax.Array, axis_name: str | None, block_size: int) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Log-sum-exp over every anchor's negatives, [B*V], and the first views' metrics, [B] each.

    Args:
        z: [B, V, D], whose products are the logits.
        axis_name: mesh axis that splits the batch.
        block_size: anchors at a time.
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


def _in_blocks_backward(axis_name, block_size, residuals, gradients):
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


negatives_in_blocks.defvjp(_in_blocks_forward, _in_blocks_backward)


def _gather_views(x: jax.Array, axis_name: str | None) -> jax.Array:
    """[B, V, ...] of every member -> [V*N, ...]: the second views lie side by side."""
    return _gather(x, axis_name).swapaxes(0, 1).reshape(-1, *x.shape[2:])


def _without_own(logits: jax.Array, image: jax.Array, images: int) -> jax.Array:
    """An anchor's logits with all views [V*N], -inf for those of its own image."""
    candidate = jnp.arange(logits.size, dtype=jnp.int32) % images
    return jnp.where(candidate == image, -jnp.inf, logits)
