"""Cross-entropies of supervised classifiers, and their accuracy, as weighted means over images."""

import jax
import jax.numpy as jnp
import optax

from simclr_jax.ops.similarities import full_precision


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Weighted mean cross-entropy of integer labels, in nats.

    Args:
        logits: [..., K], any float type; computed in float32, or float64 where they are.
        labels: [...], integers below K; negative: no label, weight 0.
        weights: [...], >= 0; None: all 1.

    Returns:
        sum(weight * cross-entropy) / sum(weight), a scalar; 0 where all weights are 0.
    """
    values = optax.softmax_cross_entropy_with_integer_labels(full_precision(logits), jnp.maximum(labels, 0))
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
    logits = full_precision(logits)
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


def _labelled_mean(values: jax.Array, labels: jax.Array, weights: jax.Array | None) -> jax.Array:
    labelled = (labels >= 0).astype(values.dtype)
    weights = labelled if weights is None else labelled * weights.astype(values.dtype)
    total = jnp.sum(weights)
    return jnp.sum(weights * values) / jnp.where(total > 0, total, 1.0)
