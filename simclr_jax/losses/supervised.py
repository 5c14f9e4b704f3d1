"""Cross-entropies and accuracy of supervised classifiers, as weighted means over images."""

import jax
import jax.numpy as jnp
import optax

from simclr_jax.ops.precision import at_least_float32


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Weighted mean cross-entropy of integer labels, in nats.

    Args:
        logits: Logits of K classes, [..., K]. The computation is in float32, or in float64 for float64 logits.
        labels: Integers below K, [...]. A negative label means none, and weight 0.
        weights: Weights >= 0, [...]. None: all 1.

    Returns:
        sum(weight * cross-entropy) / sum(weight), a scalar. It is 0 if all weights are 0.

    Example:
        >>> logits = jnp.array([[0.0, 0.0], [9.0, 0.0]])
        >>> print(f'{softmax_cross_entropy(logits, jnp.array([1, -1])):.4f}')
        0.6931
    """
    values = optax.softmax_cross_entropy_with_integer_labels(at_least_float32(logits), jnp.maximum(labels, 0))
    return labelled_mean(values, labels, weights)


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Weighted mean over images of the binary cross-entropy summed over the classes, in nats.

    Args:
        logits: Logits of K classes, [..., K]. The computation is in float32, or in float64 for float64 logits.
        labels: Labels [..., K], with 1 for a present class, 0 for an absent and a negative number for an ignored one.
            An image that ignores all classes has weight 0.
        weights: Weights >= 0, [...]. None: all 1.

    Returns:
        sum(weight * sum over the classes) / sum(weight), a scalar. It is 0 if all weights are 0.
    """
    logits = at_least_float32(logits)
    values = optax.sigmoid_binary_cross_entropy(logits, labels.astype(logits.dtype))
    per_image = jnp.sum(values, axis=-1, where=labels >= 0)
    return labelled_mean(per_image, jnp.max(labels, axis=-1), weights)


def accuracy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Weighted share of the rows whose largest logit is at their label.

    Args:
        logits: Logits of K classes, [..., K].
        labels: Integers below K, [...]. A negative label means none, and weight 0.
        weights: Weights >= 0, [...]. None: all 1.

    Returns:
        A float32 scalar from 0 to 1. It is 0 if all weights are 0.
    """
    correct = jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels
    return labelled_mean(correct.astype(jnp.float32), labels, weights)


def labelled_mean(values: jax.Array, labels: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Weighted mean of the values of the labelled images.

    Args:
        values: Values [...].
        labels: Integers [...]. A negative label means none, and weight 0.
        weights: Weights >= 0, [...]. None: all 1.

    Returns:
        sum(weight * value) / sum(weight), a scalar. It is 0 if all weights are 0.
    """
    labelled = (labels >= 0).astype(values.dtype)
    weights = labelled if weights is None else labelled * weights.astype(values.dtype)
    total = jnp.sum(weights)
    return jnp.sum(weights * values) / jnp.where(total > 0, total, 1.0)
