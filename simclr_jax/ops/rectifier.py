"""ReLU, alone and behind a batch norm, with gradients that keep few values of the forward pass."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from simclr_jax.ops.batch_statistics import Moments, moments
from simclr_jax.ops.convolution import between_convolutions
from simclr_jax.ops.precision import at_least_float32


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """Computes max(x, 0). The gradient at 0 is 0.

    The gradient follows from the result, so that the input need not be kept.
    """
    return jnp.maximum(x, 0)


def _relu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = relu(x)
    return y, y


def _relu_backward(y: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (jnp.where(y > 0, gradient, jnp.zeros_like(gradient)),)


relu.defvjp(_relu_forward, _relu_backward)


def normalize_and_rectify(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, shortcut: jax.Array | None = None
) -> tuple[jax.Array, Moments]:
    """Computes max(scale (x - E[x]) / sqrt(Var[x] + epsilon) + bias + shortcut, 0).

    The statistics are those of all axes but the last. Of the large arrays, only x is kept for the gradients, and the
    result if there is a shortcut. Gradients pass through the statistics in the formula, but not through the statistics
    that are returned.

    Args:
        x: Array [..., C].
        scale: Scale [C].
        bias: Offset [C].
        epsilon: Constant that is added to the variance.
        shortcut: Array of the shape and dtype of x. None: no shortcut.

    Returns:
        The result, of the shape and dtype of x, and the statistics of x, at least float32.
    """
    # The type of a function is lost between `partial` and `custom_vjp`.
    found: Any = _normalize_and_rectify(epsilon, x, scale, bias, shortcut)
    y, batch = found
    return y, jax.lax.stop_gradient(batch)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalize_and_rectify(epsilon, x, scale, bias, shortcut):
    return _forward(epsilon, x, scale, bias, shortcut)[0]


def _forward(epsilon, x, scale, bias, shortcut):
    def compute(images, vectors):
        x, shortcut = images
        scale, bias = vectors
        mean, variance = moments(at_least_float32(x))
        inverse = jax.lax.rsqrt(variance + epsilon)
        y = _normalized(x, scale, bias, mean, inverse)
        if shortcut is not None:
            y = y + at_least_float32(shortcut)
        return jnp.maximum(y, 0).astype(x.dtype), (mean, variance, inverse)

    y, (mean, variance, inverse) = between_convolutions(compute, (x, shortcut), (scale, bias))
    kept = x, None if shortcut is None else y, scale, bias, mean, inverse
    return (y, (mean, variance)), kept


def _backward(epsilon, kept, gradients):
    del epsilon
    x, y, *vectors = kept

    def compute(images, vectors):
        x, y, dy = images
        scale, bias, mean, inverse = vectors
        positive = (_normalized(x, scale, bias, mean, inverse) if y is None else y) > 0
        dy = jnp.where(positive, dy, jnp.zeros_like(dy))
        # dx is dy without its projections on 1 and on the normalised x.
        x_float, dy_float = at_least_float32(x), at_least_float32(dy)
        axes = tuple(range(x.ndim - 1))
        dbias = dy_float.sum(axes)
        dscale = ((dy_float * x_float).sum(axes) - mean * dbias) * inverse
        share = x.shape[-1] / x.size
        slope = dscale * inverse * share
        dx = (scale * inverse) * (dy_float - x_float * slope + (mean * slope - dbias * share))
        return (dx.astype(x.dtype), None if y is None else dy), (dscale, dbias)

    (dx, dshortcut), (dscale, dbias) = between_convolutions(compute, (x, y, gradients[0]), vectors)
    return dx, dscale, dbias, dshortcut


_normalize_and_rectify.defvjp(_forward, _backward)


def _normalized(x, scale, bias, mean, inverse):
    # This is a function of x itself. The difference x - mean would be shared with the sums of the backward pass, and
    # XLA would therefore write and keep it.
    factor = scale * inverse
    return at_least_float32(x) * factor + (bias - mean * factor)
