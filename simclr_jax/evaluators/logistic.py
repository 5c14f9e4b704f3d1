"""l2-regularised multinomial logistic regression by L-BFGS: linear evaluation without a learning rate."""

import dataclasses
import functools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from simclr_jax.evaluators.knn import check_features, check_labels

# SimCLR, appendix B.8: 45 values log-spaced in [1e-6, 1e5], here from the strongest to the weakest.
LAMBDAS = tuple(float(value) for value in np.logspace(5, -6, 45))

_product = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)

# Iterations between two measurements of the curvature.
_ROUND = 200


class Weights(NamedTuple):
    """Linear classifier: logits are features @ kernel + bias, kernel [F, K], bias [K], float32."""

    kernel: jax.Array
    bias: jax.Array


@dataclasses.dataclass(frozen=True)
class Path:
    """What `fit_path` found.

    Attributes:
        weights: the classifier refitted on training and validation examples.
        l2: the strength of regularisation chosen.
        lambdas: strengths tried, descending.
        validation_accuracy: fraction correct on the validation examples for each.
        iterations: L-BFGS iterations spent on each.
    """

    weights: Weights
    l2: float
    lambdas: tuple[float, ...]
    validation_accuracy: tuple[float, ...]
    iterations: tuple[int, ...]


def fit(
    features,
    labels,
    num_classes: int,
    l2: float,
    *,
    initial: Weights | None = None,
    weights=None,
    max_iterations: int = 2000,
    tolerance: float = 1e-7,
) -> Weights:
    """Minimises the sum over examples of the cross-entropy + l2 / 2 |kernel|^2; the bias is free.

    The optimum is that of scikit-learn's LogisticRegression with C = 1 / l2.

    Args:
        features: [N, F], finite, on any scale.
        labels: [N] integers in 0..num_classes - 1, every class present.
        num_classes: K, at least 2.
        l2: positive strength of regularisation.
        initial: where to start; zeros if None.
        weights: [N] non-negative weights of the examples; ones if None.
        max_iterations: most L-BFGS iterations.
        tolerance: stop where the squared gradient, in units of the curvature, is this fraction of the
            objective; the objective is then usually within about ten times this fraction of its minimum.

    Returns:
        The minimiser.

    Raises:
        ValueError: shapes, labels or settings break a rule above; the message names the cure.

    Warns:
        RuntimeWarning: max_iterations was too small.
    """
    features, labels = _as_examples('training', features, labels, num_classes)
    weights = _as_weights(weights, labels, num_classes)
    _check_strengths((l2,))
    initial = _zeros(features.shape[1], num_classes) if initial is None else initial
    if initial.kernel.shape != (features.shape[1], num_classes) or initial.bias.shape != (num_classes,):
        raise ValueError(
            f'initial has kernel {initial.kernel.shape} and bias {initial.bias.shape}, must be '
            f'{(features.shape[1], num_classes)} and {(num_classes,)}: start from a fit of the same problem'
        )
    examples = (jnp.asarray(features), jnp.asarray(labels), jnp.asarray(weights))
    solution, spent, converged = _minimize(examples, l2, initial, max_iterations, tolerance)
    if not converged:
        warnings.warn(
            f'l2={l2:g}: not within tolerance={tolerance:g} after {spent} iterations; '
            'raise max_iterations, tolerance or l2',
            RuntimeWarning,
            stacklevel=2,
        )
    return solution


def fit_path(
    train_features,
    train_labels,
    validation_features,
    validation_labels,
    num_classes: int,
    *,
    lambdas=LAMBDAS,
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
) -> Path:
    """Chooses the strength of regularisation on validation examples, then refits on all.

    Strengths go from the strongest to the weakest, each from the solution of the one before; of equal
    validation accuracies the strongest regularisation wins.

    Args:
        train_features: [N, F], finite.
        train_labels: [N] integers in 0..num_classes - 1, every class present.
        validation_features: [M, F], finite.
        validation_labels: [M] integers in 0..num_classes - 1.
        num_classes: K, at least 2.
        lambdas: positive strengths, in any order.
        max_iterations: see `fit`; for each strength.
        tolerance: see `fit`.

    Returns:
        The refitted classifier and the path that led to it.

    Raises:
        ValueError: see `fit`.

    Source: SimCLR, arXiv 2002.05709, appendix B.8.
    """
    train_features, train_labels = _as_examples('training', train_features, train_labels, num_classes)
    held_features, held_labels = _as_examples('validation', validation_features, validation_labels, num_classes)
    if held_features.shape[1] != train_features.shape[1]:
        raise ValueError(
            f'training has {train_features.shape[1]} features and validation {held_features.shape[1]}: '
            'they must be equal, take both from the same layer of the same encoder'
        )
    _check_strengths(lambdas)
    lambdas = tuple(sorted(map(float, lambdas), reverse=True))
    # Validation examples take part with weight 0, then 1: choosing and refitting are one compiled program.
    features = jnp.asarray(np.concatenate([train_features, held_features]))
    labels = jnp.asarray(np.concatenate([train_labels, held_labels]))
    everyone = jnp.ones(len(labels), jnp.float32)
    training = (features, labels, everyone.at[len(train_labels) :].set(0.0))
    _as_weights(np.asarray(training[2]), np.asarray(labels), num_classes)

    solution = best = _zeros(features.shape[1], num_classes)
    chosen, accuracies, iterations = lambdas[0], [], []
    for l2 in lambdas:
        solution, spent, _ = _minimize(training, l2, solution, max_iterations, tolerance)
        accuracies.append(accuracy(solution, held_features, held_labels))
        iterations.append(spent)
        if accuracies[-1] > max(accuracies[:-1], default=-1.0):
            best, chosen = solution, l2
    refitted, _, _ = _minimize((features, labels, everyone), chosen, best, max_iterations, tolerance)
    return Path(refitted, chosen, lambdas, tuple(accuracies), tuple(iterations))


def predict(classifier: Weights, features) -> np.ndarray:
    """Most likely labels [N], int32, of features [N, F]; of equal logits the lower label."""
    return np.asarray(_predict(classifier, jnp.asarray(features, jnp.float32)))


def accuracy(classifier: Weights, features, labels) -> float:
    """Fraction of the features [N, F] whose label [N] is predicted."""
    return float(np.mean(predict(classifier, features) == np.asarray(labels)))


def objective(classifier: Weights, features, labels, l2, weights=1.0) -> jax.Array:
    """The sum that `fit` minimises, for features [N, F], labels [N] and weights [N] or scalar."""
    own, others = _own_and_others(_logits(classifier, features), labels)
    # softplus(others - own) is the cross-entropy, exact to the last digits where the classes are separated
    # and it tends to 0; with weak regularisation the whole objective lives there.
    losses = jax.nn.softplus(others - own)
    return jnp.sum(weights * losses) + 0.5 * l2 * jnp.sum(jnp.square(classifier.kernel))


def _own_and_others(logits, labels):
    """Logit of the labelled class [N] and log-sum-exp of the other classes' [N]."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    is_other = jnp.arange(logits.shape[1]) != labels[:, None]
    return own, jax.nn.logsumexp(logits, axis=1, where=is_other)


def _logits(classifier, features):
    return _product(features, classifier.kernel) + classifier.bias


@jax.jit
def _predict(classifier, features):
    return jnp.argmax(_logits(classifier, features), axis=1).astype(jnp.int32)


def _minimize(examples, l2, initial, max_iterations, tolerance):
    """Rounds of L-BFGS until one has nothing left to do: (weights, iterations, converged)."""
    spent, converged = 0, False
    while spent < max_iterations and not converged:
        budget = min(_ROUND, max_iterations - spent)
        initial, iterations, decrement = _descend(
            *examples, jnp.float32(l2), initial, jnp.int32(budget), jnp.float32(tolerance)
        )
        spent += int(iterations)
        # The curvature a long round began with may be far too large at its end, and the decrement too small:
        # only a round that ends where it began is believed.
        converged = int(iterations) == 1 and float(decrement) <= tolerance
    return initial, spent, converged


@jax.jit
def _descend(features, labels, weights, l2, initial, max_iterations, tolerance):
    """One round of L-BFGS: (weights, iterations, squared gradient over the objective at the end).

    The unknowns are moved and scaled such that the curvature at the start is about 1 in every one of them:
    features are centred, which the free bias absorbs, and each unknown is measured in units of one over the
    root of its second derivative. The objective and its minimum stay what they are.
    """
    mean = _product(weights, features) / jnp.sum(weights)
    centred = features - mean
    start = Weights(initial.kernel, initial.bias + _product(mean, initial.kernel))
    scale = _curvature_scale(start, centred, weights, l2)

    def scaled_objective(scaled):
        return objective(jax.tree.map(jnp.multiply, scaled, scale), centred, labels, l2, weights)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(scaled_objective)

    def unfinished(carry):
        _, _, iteration, decrement = carry
        return (iteration < max_iterations) & ~(decrement <= tolerance)

    def iterate(carry):
        unknowns, state, iteration, _ = carry
        value, grad = value_and_grad(unknowns, state=state)
        updates, state = optimizer.update(grad, state, unknowns, value=value, grad=grad, value_fn=scaled_objective)
        unknowns = optax.apply_updates(unknowns, updates)
        value, grad = optax.tree.get(state, 'value'), optax.tree.get(state, 'grad')
        return unknowns, state, iteration + 1, optax.tree.norm(grad, squared=True) / value

    scaled = jax.tree.map(jnp.divide, start, scale)
    carry = (scaled, optimizer.init(scaled), jnp.int32(0), jnp.float32(jnp.inf))
    scaled, _, iterations, decrement = jax.lax.while_loop(unfinished, iterate, carry)
    kernel, bias = jax.tree.map(jnp.multiply, scaled, scale)
    return Weights(kernel, bias - _product(mean, kernel)), iterations, decrement


def _curvature_scale(classifier, features, weights, l2):
    """One over the root of the objective's second derivative in every unknown, as Weights."""
    probabilities = jax.nn.softmax(_logits(classifier, features))
    spread = weights[:, None] * probabilities * (1 - probabilities)
    kernel = _product(jnp.square(features).T, spread) + l2
    # Where every example is certain the bias has no curvature left to measure.
    bias = jnp.maximum(jnp.sum(spread, axis=0), 1e-12)
    return Weights(jax.lax.rsqrt(kernel), jax.lax.rsqrt(bias))


def _zeros(num_features, num_classes):
    return Weights(jnp.zeros((num_features, num_classes), jnp.float32), jnp.zeros((num_classes,), jnp.float32))


def _as_examples(name, features, labels, num_classes):
    """Features as float32 [N, F] and labels as int32 [N], checked."""
    features = check_features(f'{name} features', features)
    return features, check_labels(f'{name} labels', labels, len(features), num_classes)


def _as_weights(weights, labels, num_classes):
    """Weights as float32 [N], checked; every class must keep an example, or its bias has no minimum."""
    weights = np.ones(len(labels), np.float32) if weights is None else np.asarray(weights, np.float32)
    if weights.shape != labels.shape or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f'weights {weights.shape} must be {len(labels)} finite numbers, none negative')
    missing = sorted(set(range(num_classes)) - set(labels[weights > 0].tolist()))
    if missing or num_classes < 2:
        raise ValueError(
            f'classes {missing} of {num_classes} have no training example; there must be two or more classes '
            'and each needs one: renumber the labels from 0 without gaps'
        )
    return weights


def _check_strengths(lambdas):
    if not len(lambdas) or not all(0 < l2 < np.inf for l2 in lambdas):
        raise ValueError(
            f'l2={list(lambdas)} must be positive and finite: '
            'without regularisation separable classes have no minimum; 1e-6 is next to none'
        )
