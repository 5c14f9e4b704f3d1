"""Convex linear classifiers on frozen features, fitted to their optimum by L-BFGS.

The features are first rotated to their principal axes. The l2 penalty does not change under a rotation. The rotation
reduces the number of iterations by several times, because the Hessian of decorrelated features is almost diagonal.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from simclr_jax import sharding
from simclr_jax.ops.precision import precise_matmul

# With more axes than this, the search for them takes longer than it saves.
MOST_AXES = 6144
# Features of up to this many bytes are fitted by one process, on its own devices. Processes that shared the rows would
# exchange a gradient several times in each iteration, which takes longer than the products that it saves.
OWN_BYTES = 2**30
# Most iterations between two measurements of the curvature.
ROUND = 200


class Weights(NamedTuple):
    """Linear classifier with logits features @ kernel + bias.

    Attributes:
        kernel: [F, K] float32.
        bias: [K] float32.
    """

    kernel: jax.Array
    bias: jax.Array


class Loss(NamedTuple):
    """A convex loss of logits [N, K] and targets, summed with the examples' weights.

    Attributes:
        total: Function (logits, targets, weights) -> weighted sum of the losses [].
        curvature: Function (logits, targets, weights) -> weighted second derivatives with respect to each logit
            [N, K].
    """

    total: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    curvature: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Axes(NamedTuple):
    """An origin and orthonormal directions that span the features relative to that origin.

    Attributes:
        origin: [F] float32.
        directions: [F, R] float32.
    """

    origin: np.ndarray
    directions: np.ndarray

    def of(self, features: np.ndarray) -> np.ndarray:
        """Computes the coordinates [N, R] of features [N, F]."""
        return (features - self.origin) @ self.directions


def principal_axes(features: np.ndarray, *, centre: bool) -> Axes:
    """Computes the principal axes of features.

    Args:
        features: [N, F] float32.
        centre: Whether the origin is the features' mean. Otherwise it is zero.

    Returns:
        The axes. Their number R is F, or N where there are fewer examples than features.
    """
    origin = features.mean(0, dtype=np.float64) if centre else np.zeros(features.shape[1])
    origin = origin.astype(np.float32)
    return Axes(origin, _directions(features - origin))


def _directions(features: np.ndarray) -> np.ndarray:
    num_examples, width = features.shape
    if num_examples < width:
        # Directions orthogonal to every example have weight 0 at the optimum.
        basis = np.linalg.qr(features.T)[0]
        return basis @ _directions(features @ basis)
    if width > MOST_AXES:
        return np.eye(width, dtype=np.float32)
    second_moments = (features.T @ features).astype(np.float64)
    return np.linalg.eigh(second_moments)[1].astype(np.float32)


def fit_alone(num_bytes: int) -> bool:
    """Whether one process of a job fits classifiers of so many bytes of features without the others."""
    return jax.process_count() > 1 and num_bytes <= OWN_BYTES


def mesh_for(features: np.ndarray) -> Mesh:
    """The devices that fit a classifier of features [N, F]: this process's own, or all of the job for large features.

    Every process must call with the same features. All processes then find the same classifier.
    """
    return sharding.make_mesh(jax.local_devices() if fit_alone(features.nbytes) else None)


def on_devices(mesh: Mesh, *rows: np.ndarray) -> tuple[jax.Array, ...]:
    """Divides arrays of N rows among devices. Rows of zeros fill the last device's share.

    Args:
        mesh: Devices that share the rows.
        *rows: Arrays [N, ...] of the same N.

    Returns:
        The arrays on the devices, their number of rows divisible by the number of devices.
    """
    missing = -len(rows[0]) % mesh.size
    padded = [np.pad(part, [(0, missing)] + [(0, 0)] * (part.ndim - 1)) for part in rows]
    return tuple(sharding.from_everywhere(part, sharding.by_rows(mesh)) for part in padded)


def check_widths(training: np.ndarray, validation: np.ndarray):
    """Raises ValueError unless the features [N, F] and [M, F] have the same width F."""
    if training.shape[1] != validation.shape[1]:
        raise ValueError(
            f'training has {training.shape[1]} features and validation {validation.shape[1]}: '
            'they must be equal: take both from the same layer of the same encoder'
        )


def zeros(width: int, num_classes: int) -> Weights:
    """Makes the classifier whose weights are all 0, with kernel [width, num_classes] and bias [num_classes]."""
    return Weights(jnp.zeros((width, num_classes), jnp.float32), jnp.zeros((num_classes,), jnp.float32))


def predict_logits(classifier: Weights, features) -> np.ndarray:
    """Computes the logits [N, K], float32, of features [N, F]."""
    return sharding.to_host(_logits(classifier, jnp.asarray(features, jnp.float32)))


def objective(loss: Loss, classifier: Weights, examples: tuple, l2) -> jax.Array:
    """Computes the function that `minimize` minimises: weighted sum of losses + sum over classes of l2 / 2 |kernel|^2.

    Args:
        loss: Loss of each example.
        classifier: Kernel [F, K] and bias [K].
        examples: Features [N, F], targets [N] or [N, K], and weights [N] or [N, K].
        l2: Strength of the penalty, a scalar or [K].

    Returns:
        The objective [].
    """
    features, targets, weights = examples
    # With classes as rows, the gradient is a product along the features' rows, which is three times faster on CPUs.
    rows = classifier.kernel.T
    logits = precise_matmul(features, rows.T) + classifier.bias
    return loss.total(logits, targets, weights) + 0.5 * jnp.sum(l2 * jnp.sum(jnp.square(rows), axis=1))


@jax.jit
def _logits(classifier, features):
    return precise_matmul(features, classifier.kernel) + classifier.bias


def minimize(
    loss: Loss, examples: tuple, l2, initial: Weights, *, max_iterations: int, tolerance: float, has_bias: bool = True
) -> tuple[Weights, int, bool]:
    """Minimises `objective` by rounds of L-BFGS, until a round has nothing left to improve.

    Args:
        loss: Loss of each example.
        examples: Features [N, F], targets [N] or [N, K], and weights [N] or [N, K], as returned by `on_devices`.
        l2: Strength of the penalty, a scalar or [K] with one strength per class.
        initial: Classifier at which the search starts.
        max_iterations: Most iterations over all rounds.
        tolerance: Fraction of the objective. The search stops once the squared gradient, in units of the curvature,
            is at most this fraction.
        has_bias: Whether to fit a bias, which has no penalty. Otherwise the initial bias is kept.

    Returns:
        The weights, the number of iterations and whether the tolerance was met.
    """
    spent, converged = 0, False
    everywhere = sharding.replicated(examples[0].sharding.mesh)
    # The same placement in every round means that the round is compiled once.
    initial, strength = jax.tree.map(lambda leaf: _placed(leaf, everywhere), (initial, np.asarray(l2, np.float32)))
    while spent < max_iterations and not converged:
        budget = min(ROUND, max_iterations - spent)
        initial, iterations, decrement = _descend(
            loss, examples, strength, initial, np.int32(budget), np.float32(tolerance), has_bias
        )
        # On one device the compiler gives the result another name of the same place.
        initial = jax.device_put(initial, everywhere)
        spent += int(iterations)
        # The curvature measured at the start of a long round may be far too large at its end. The decrement is then
        # too small. Only a round that ends where it began can be trusted.
        converged = int(iterations) == 1 and float(decrement) <= tolerance
    return initial, spent, converged


def _placed(leaf, place: NamedSharding) -> jax.Array:
    """An array where the rounds leave it. Only one from elsewhere moves."""
    is_there = isinstance(leaf, jax.Array) and leaf.sharding == place
    return leaf if is_there else sharding.from_everywhere(sharding.to_host(jnp.asarray(leaf)), place)


@functools.partial(jax.jit, static_argnames=('loss', 'has_bias'))
def _descend(loss, examples, l2, initial, max_iterations, tolerance, has_bias):
    """Runs one round of L-BFGS.

    The unknowns are shifted and scaled so that the curvature at the start is about 1 for each of them. The bias is the
    logit at the examples' mean. Each unknown is divided by the inverse square root of its second derivative. The
    objective and its minimum do not change.

    Returns:
        The weights, the number of iterations, and the squared gradient / the objective at the end.
    """
    features, targets, weights = examples
    curvature = loss.curvature(_logits(initial, features), targets, weights)
    mean = jnp.zeros(features.shape[1], jnp.float32)
    if has_bias:
        share = weights if weights.ndim == 1 else weights.mean(axis=1)
        mean = precise_matmul(share, features) / jnp.sum(share)
    scale = Weights(
        jax.lax.rsqrt(precise_matmul(curvature.T, jnp.square(features - mean)) + l2.reshape(-1, 1)),
        # Where every example is certain, the curvature of the bias vanishes.
        jax.lax.rsqrt(jnp.maximum(jnp.sum(curvature, axis=0), 1e-12)),
    )

    def classifier_of(unknowns):
        kernel, bias = jax.tree.map(jnp.multiply, unknowns, scale)
        return Weights(kernel.T, bias - precise_matmul(kernel, mean) if has_bias else initial.bias)

    def scaled_objective(unknowns):
        return objective(loss, classifier_of(unknowns), examples, l2)

    start = Weights(initial.kernel.T, initial.bias + precise_matmul(mean, initial.kernel))
    start = jax.tree.map(jnp.divide, start, scale)
    unknowns, iterations, decrement = _lbfgs(scaled_objective, start, max_iterations, tolerance)
    return classifier_of(unknowns), iterations, decrement


def _lbfgs(function, unknowns, max_iterations, tolerance):
    """Minimises a function. Returns the unknowns, the number of iterations, and squared gradient / function value."""
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
