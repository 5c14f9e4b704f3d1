"""Convex linear classifiers on frozen features, fitted to their optimum by L-BFGS on all devices.

The features are rotated to their principal axes first. The l2 penalty does not change under a rotation, the
number of iterations falls by several times: between decorrelated features the Hessian is almost diagonal.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simclr_jax import sharding

# Beyond so many axes finding them takes longer than it saves.
MOST_AXES = 6144
# Iterations between two measurements of the curvature.
ROUND = 200

_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Weights(NamedTuple):
    """Linear classifier: logits are features @ kernel + bias, kernel [F, K], bias [K], float32."""

    kernel: jax.Array
    bias: jax.Array


class Loss(NamedTuple):
    """A convex loss of logits [N, K] with targets, summed with the examples' weights.

    Attributes:
        total: (logits, targets, weights) -> the weighted sum [].
        curvature: (logits, targets, weights) -> weighted second derivatives by each logit [N, K].
    """

    total: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    curvature: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Axes(NamedTuple):
    """An origin [F] and orthonormal directions [F, R] that span the features seen from it."""

    origin: np.ndarray
    directions: np.ndarray

    def of(self, features: np.ndarray) -> np.ndarray:
        """Coordinates [N, R] of features [N, F]."""
        return (features - self.origin) @ self.directions


def principal_axes(features: np.ndarray, *, centre: bool) -> Axes:
    """The principal axes of features float32 [N, F], about their mean (`centre`) or about zero."""
    origin = features.mean(0, dtype=np.float64) if centre else np.zeros(features.shape[1])
    origin = origin.astype(np.float32)
    return Axes(origin, _directions(features - origin))


def _directions(features: np.ndarray) -> np.ndarray:
    num_examples, width = features.shape
    if num_examples < width:
        # What is orthogonal to every example has no weight at the optimum.
        basis = np.linalg.qr(features.T)[0]
        return basis @ _directions(features @ basis)
    if width > MOST_AXES:
        return np.eye(width, dtype=np.float32)
    second_moments = (features.T @ features).astype(np.float64)
    return np.linalg.eigh(second_moments)[1].astype(np.float32)


def on_devices(*rows: np.ndarray, devices: list[jax.Device] | None = None) -> tuple[jax.Array, ...]:
    """Arrays of N rows, divided among all devices or those given; rows of zeros fill up the last one's share."""
    mesh = sharding.make_mesh(devices)
    missing = -len(rows[0]) % mesh.size
    padded = [np.pad(part, [(0, missing)] + [(0, 0)] * (part.ndim - 1)) for part in rows]
    return tuple(jax.device_put(part, sharding.by_rows(mesh)) for part in padded)


def check_widths(training: np.ndarray, validation: np.ndarray):
    """ValueError unless the features [N, F] and [M, F] are equally wide."""
    if training.shape[1] != validation.shape[1]:
        raise ValueError(
            f'training has {training.shape[1]} features and validation {validation.shape[1]}: '
            'they must be equal, take both from the same layer of the same encoder'
        )


def zeros(width: int, num_classes: int) -> Weights:
    """The classifier that prefers no class."""
    return Weights(jnp.zeros((width, num_classes), jnp.float32), jnp.zeros((num_classes,), jnp.float32))


def predict_logits(classifier: Weights, features) -> np.ndarray:
    """Logits [N, K] of features [N, F], float32."""
    return sharding.to_host(_logits(classifier, jnp.asarray(features, jnp.float32)))


def objective(loss: Loss, classifier: Weights, examples: tuple, l2) -> jax.Array:
    """The weighted sum of the losses + the sum of l2 / 2 kernel^2: what `minimize` minimises."""
    features, targets, weights = examples
    # Classes come first: the gradient is then a product along the features' rows, three times faster on CPU.
    rows = classifier.kernel.T
    logits = jnp.einsum('nf,kf->nk', features, rows, precision=jax.lax.Precision.HIGHEST) + classifier.bias
    return loss.total(logits, targets, weights) + 0.5 * jnp.sum(l2 * jnp.sum(jnp.square(rows), axis=1))


@jax.jit
def _logits(classifier, features):
    return _product(features, classifier.kernel) + classifier.bias


def minimize(
    loss: Loss, examples: tuple, l2, initial: Weights, *, max_iterations: int, tolerance: float, has_bias: bool = True
) -> tuple[Weights, int, bool]:
    """Minimises `objective` by rounds of L-BFGS, until one has nothing left to do.

    Args:
        loss: what is summed over the examples.
        examples: (features [N, F], targets [N] or [N, K], weights [N] or [N, K]), as from `on_devices`.
        l2: strength of the penalty, scalar or [K] for each class its own.
        initial: where to start.
        max_iterations: most iterations in all.
        tolerance: stop where the squared gradient, in units of the curvature, is this fraction of the
            objective.
        has_bias: whether a bias, free of the penalty, is fitted; otherwise it stays as it is.

    Returns:
        The weights, the iterations spent and whether the tolerance was met.
    """
    spent, converged = 0, False
    everywhere = sharding.replicated(examples[0].sharding.mesh)
    while spent < max_iterations and not converged:
        budget = min(ROUND, max_iterations - spent)
        # Placed alike each time, so that it is compiled once.
        start, strength = jax.device_put((initial, jnp.asarray(l2, jnp.float32)), everywhere)
        initial, iterations, decrement = _descend(
            loss, examples, strength, start, jnp.int32(budget), jnp.float32(tolerance), has_bias
        )
        spent += int(iterations)
        # The curvature a long round began with may be far too large at its end, and the decrement too small:
        # only a round that ends where it began is believed.
        converged = int(iterations) == 1 and float(decrement) <= tolerance
    return initial, spent, converged


@functools.partial(jax.jit, static_argnames=('loss', 'has_bias'))
def _descend(loss, examples, l2, initial, max_iterations, tolerance, has_bias):
    """One round of L-BFGS: (weights, iterations, squared gradient over the objective at the end).

    The unknowns are moved and scaled such that the curvature at the start is about 1 in every one of them:
    the bias is that at the examples' mean, and each unknown is measured in units of one over the root of its
    second derivative. The objective and its minimum stay what they are.
    """
    features, targets, weights = examples
    curvature = loss.curvature(_logits(initial, features), targets, weights)
    mean = jnp.zeros(features.shape[1], jnp.float32)
    if has_bias:
        share = weights if weights.ndim == 1 else weights.mean(axis=1)
        mean = _product(share, features) / jnp.sum(share)
    scale = Weights(
        jax.lax.rsqrt(_product(curvature.T, jnp.square(features - mean)) + l2.reshape(-1, 1)),
        # Where every example is certain the bias has no curvature left to measure.
        jax.lax.rsqrt(jnp.maximum(jnp.sum(curvature, axis=0), 1e-12)),
    )

    def classifier_of(unknowns):
        kernel, bias = jax.tree.map(jnp.multiply, unknowns, scale)
        return Weights(kernel.T, bias - _product(kernel, mean) if has_bias else initial.bias)

    def scaled_objective(unknowns):
        return objective(loss, classifier_of(unknowns), examples, l2)

    start = Weights(initial.kernel.T, initial.bias + _product(mean, initial.kernel))
    start = jax.tree.map(jnp.divide, start, scale)
    unknowns, iterations, decrement = _lbfgs(scaled_objective, start, max_iterations, tolerance)
    return classifier_of(unknowns), iterations, decrement


def _lbfgs(function, unknowns, max_iterations, tolerance):
    """Minimises a function: (unknowns, iterations, squared gradient over the function's value)."""
    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(function)

    def unfinished(carry):
        _, _, iteration, decrement = carry
        return (iteration < max_iterations) & ~(decrement <= tolerance)

    def iterate(carry):
        unknowns, state, iteration, _ = carry
        value, grad = value_and_grad(unknowns, state=state)
        updates, state = optimizer.update(grad, state, unknowns, value=value, grad=grad, value_fn=function)
        unknowns = optax.apply_updates(unknowns, updates)
        value, grad = optax.tree.get(state, 'value'), optax.tree.get(state, 'grad')
        return unknowns, state, iteration + 1, optax.tree.norm(grad, squared=True) / value

    carry = (unknowns, optimizer.init(unknowns), jnp.int32(0), jnp.float32(jnp.inf))
    unknowns, _, iterations, decrement = jax.lax.while_loop(unfinished, iterate, carry)
    return unknowns, iterations, decrement
