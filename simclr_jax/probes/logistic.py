"""Linear evaluation by l2-regularised logistic regression. L-BFGS finds the optimum and needs no learning rate."""

import dataclasses
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.probes import linear_model
from simclr_jax.probes.checks import check_features, check_labels, check_targets
from simclr_jax.probes.linear_model import Axes, Loss, Weights, predict_logits, principal_axes

# SimCLR, appendix B.8: 45 values spaced logarithmically in [1e-6, 1e5], from the strongest to the weakest.
LAMBDAS = tuple(float(value) for value in np.logspace(5, -6, 45))


@dataclasses.dataclass(frozen=True)
class Path:
    """Result of `fit_path`.

    Attributes:
        weights: Classifier refitted on training and validation examples.
        l2: Chosen strength of regularisation.
        lambdas: All strengths, descending.
        validation_score: Score on the validation examples for each strength.
        iterations: L-BFGS iterations for each strength.
        unfinished: Strengths for which max_iterations was too small.
    """

    weights: Weights
    l2: float
    lambdas: tuple[float, ...]
    validation_score: tuple[float, ...]
    iterations: tuple[int, ...]
    unfinished: tuple[float, ...]


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
    """Minimises the sum over examples of the cross-entropy + l2 / 2 |kernel|^2. The bias has no penalty.

    With one label per example, the cross-entropy is that of the softmax. The optimum is then that of scikit-learn's
    LogisticRegression with C = 1 / l2. With any number of labels per example, each class has its own sigmoid, which
    separates the class from all others.

    Args:
        features: [N, F], finite, on any scale.
        labels: [N] integers in 0..num_classes - 1, with every class present. Or [N, num_classes] of 1 (present),
            0 (absent) and -1 (ignored), with every class present in one example and absent in another.
        num_classes: Number of classes K, at least 2.
        l2: Positive strength of regularisation.
        initial: Classifier at which the search starts, zeros if None.
        weights: [N] non-negative weights of the examples, ones if None.
        max_iterations: Most L-BFGS iterations.
        tolerance: Fraction of the objective. The search stops once the squared gradient, in units of the curvature,
            is at most this fraction. The objective is then usually within about ten times this fraction of its
            minimum.

    Returns:
        The weights at the minimum.

    Raises:
        ValueError: Shapes, labels or settings break a rule above. The message names the cure.

    Warns:
        RuntimeWarning: max_iterations was too small.
    """
    features, labels = _as_examples('training', features, labels, num_classes)
    weights = _as_weights(weights, labels, num_classes)
    _check_strengths((l2,))
    initial = linear_model.zeros(features.shape[1], num_classes) if initial is None else initial
    if initial.kernel.shape != (features.shape[1], num_classes) or initial.bias.shape != (num_classes,):
        raise ValueError(
            f'initial has kernel {initial.kernel.shape} and bias {initial.bias.shape}, must be '
            f'{(features.shape[1], num_classes)} and {(num_classes,)}: start from a fit of the same problem'
        )
    problem = _Problem(features, labels, principal_axes(features, centre=True), max_iterations, tolerance)
    solution, spent, converged = problem.solve(problem.weighted(weights), l2, problem.inward(initial))
    if not converged:
        warnings.warn(
            f'l2={l2:g}: not within tolerance={tolerance:g} after {spent} iterations; '
            'raise max_iterations, tolerance or l2',
            RuntimeWarning,
            stacklevel=2,
        )
    return problem.outward(solution)


def fit_path(
    train_features,
    train_labels,
    validation_features,
    validation_labels,
    num_classes: int,
    *,
    lambdas=LAMBDAS,
    score: Callable[[np.ndarray, np.ndarray], float] | None = None,
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
) -> Path:
    """Chooses the strength of regularisation on validation examples, then refits on all examples.

    The fits go from the strongest to the weakest regularisation. Each starts at the solution before it. Among equal
    validation scores, the strongest regularisation wins.

    Args:
        train_features: [N, F], finite.
        train_labels: [N] or [N, K], see `fit`.
        validation_features: [M, F], finite.
        validation_labels: [M] or [M, K], see `fit`.
        num_classes: Number of classes K, at least 2.
        lambdas: Positive strengths, in any order.
        score: Function (logits [M, K], validation labels) -> score, larger is better. Accuracy if None.
        max_iterations: Most L-BFGS iterations for each strength.
        tolerance: Fraction of the objective at which each fit stops, see `fit`.

    Returns:
        The refitted classifier and the path of fits before it.

    Raises:
        ValueError: An argument breaks a rule above or a rule of `fit`.

    Source: SimCLR, arXiv 2002.05709, appendix B.8.
    """
    train_features, train_labels = _as_examples('training', train_features, train_labels, num_classes)
    held_features, held_labels = _as_examples('validation', validation_features, validation_labels, num_classes)
    linear_model.check_widths(train_features, held_features)
    _check_strengths(lambdas)
    lambdas = tuple(sorted(map(float, lambdas), reverse=True))
    score = score or _accuracy
    # Validation examples have weight 0 in the choice and 1 in the refit, so that both are one compiled program.
    features, labels = np.concatenate([train_features, held_features]), np.concatenate([train_labels, held_labels])
    everyone = _as_weights(None, labels, num_classes)
    training = _as_weights(np.arange(len(labels)) < len(train_labels), labels, num_classes)
    problem = _Problem(features, labels, principal_axes(features, centre=True), max_iterations, tolerance)
    held_inside, examples = jnp.asarray(problem.axes.of(held_features)), problem.weighted(training)

    solution = best = linear_model.zeros(problem.width, num_classes)
    chosen, scores, iterations, unfinished = lambdas[0], [], [], []
    for l2 in lambdas:
        solution, spent, converged = problem.solve(examples, l2, solution)
        scores.append(score(predict_logits(solution, held_inside), held_labels))
        iterations.append(spent)
        unfinished += [] if converged else [l2]
        if scores[-1] > max(scores[:-1], default=-np.inf):
            best, chosen = solution, l2
    refitted, _, _ = problem.solve(problem.weighted(everyone), chosen, best)
    return Path(problem.outward(refitted), chosen, lambdas, tuple(scores), tuple(iterations), tuple(unfinished))


class _Problem:
    """Examples on the devices, in coordinates along their principal axes."""

    def __init__(self, features, labels, axes: Axes, max_iterations: int, tolerance: float):
        self.axes = axes
        self.width = axes.directions.shape[1]
        self._loss = SOFTMAX if labels.ndim == 1 else SIGMOID
        self._mesh = linear_model.mesh_for(features)
        self._examples = linear_model.on_devices(self._mesh, axes.of(features), labels)
        self._limits = {'max_iterations': max_iterations, 'tolerance': tolerance}

    def weighted(self, weights: np.ndarray) -> tuple[jax.Array, ...]:
        """Puts weights [N] or [N, K] on the devices. Returns them after features and labels, for `solve`."""
        return (*self._examples, *linear_model.on_devices(self._mesh, weights))

    def solve(self, weighted: tuple[jax.Array, ...], l2: float, start: Weights) -> tuple[Weights, int, bool]:
        """Finds the optimum in these coordinates, see `linear_model.minimize`."""
        return linear_model.minimize(self._loss, weighted, l2, start, **self._limits)

    def inward(self, classifier: Weights) -> Weights:
        """Converts a classifier of features into one of their coordinates."""
        kernel = np.asarray(classifier.kernel)
        return Weights(
            jnp.asarray(self.axes.directions.T @ kernel), jnp.asarray(self.axes.origin @ kernel + classifier.bias)
        )

    def outward(self, classifier: Weights) -> Weights:
        """Converts a classifier of coordinates into one of the features."""
        kernel = self.axes.directions @ np.asarray(classifier.kernel)
        return Weights(jnp.asarray(kernel), classifier.bias - jnp.asarray(self.axes.origin @ kernel))


def predict(classifier: Weights, features) -> np.ndarray:
    """Predicts the most likely labels [N], int32, of features [N, F]. Among equal logits, the lower label wins."""
    return np.argmax(predict_logits(classifier, features), axis=1).astype(np.int32)


def accuracy(classifier: Weights, features, labels) -> float:
    """Computes the fraction of the features [N, F] whose label [N] is predicted."""
    return _accuracy(predict_logits(classifier, features), np.asarray(labels))


def objective(classifier: Weights, features, labels, l2, weights=1.0) -> jax.Array:
    """Computes the function that `fit` minimises, for features [N, F], labels [N], and weights [N] or a scalar."""
    weights = jnp.broadcast_to(jnp.asarray(weights, jnp.float32), len(labels))
    return linear_model.objective(SOFTMAX, classifier, (features, labels, weights), l2)


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def _softmax_total(logits, labels, weights):
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    is_other = jnp.arange(logits.shape[1]) != labels[:, None]
    others = jax.nn.logsumexp(logits, axis=1, where=is_other)
    # softplus(others - own) is the cross-entropy. It is exact to the last digits where the classes are separated and
    # the cross-entropy tends to 0. With weak regularisation, the whole objective consists of such values.
    return jnp.sum(weights * jax.nn.softplus(others - own))


def _softmax_curvature(logits, labels, weights):
    del labels
    probabilities = jax.nn.softmax(logits)
    return weights[:, None] * probabilities * (1 - probabilities)


def _sigmoid_total(logits, targets, weights):
    signs = jnp.where(targets > 0, jnp.float32(1), jnp.float32(-1))
    return jnp.sum(weights * jax.nn.softplus(-signs * logits))


def _sigmoid_curvature(logits, targets, weights):
    del targets
    probabilities = jax.nn.sigmoid(logits)
    return weights * probabilities * (1 - probabilities)


SOFTMAX = Loss(_softmax_total, _softmax_curvature)
SIGMOID = Loss(_sigmoid_total, _sigmoid_curvature)


def _as_examples(name, features, labels, num_classes):
    """Checks examples and returns features as float32 [N, F] and labels as int32 [N] or [N, K]."""
    features = check_features(f'{name} features', features)
    check = check_targets if np.ndim(labels) == 2 else check_labels
    return features, check(f'{name} labels', labels, len(features), num_classes)


def _as_weights(weights, labels, num_classes):
    """Checks weights [N] and returns them as float32 [N], or as [N, K] for labels [N, K].

    Without both positive and negative examples a class has no optimum, which raises ValueError.
    """
    size = len(labels)
    weights = np.ones(size, np.float32) if weights is None else np.asarray(weights, np.float32)
    if weights.shape != (size,) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f'weights {weights.shape} must be {size} finite numbers, none negative')
    counted = labels[weights > 0]
    if labels.ndim == 2:
        missing = [c for c in range(num_classes) if not {0, 1} <= set(counted[:, c].tolist())]
        rule = 'are present, or absent, in no training example, but each needs both: leave them out'
    else:
        missing = sorted(set(range(num_classes)) - set(counted.tolist()))
        rule = 'have no training example, but at least two classes with one example each are needed: '
        rule += 'renumber the labels from 0 without gaps'
    if missing or num_classes < 2:
        raise ValueError(f'classes {missing} of {num_classes} {rule}')
    return weights if labels.ndim == 1 else weights[:, None] * (labels >= 0).astype(np.float32)


def _check_strengths(lambdas):
    if not len(lambdas) or not all(0 < l2 < np.inf for l2 in lambdas):
        raise ValueError(
            f'l2={list(lambdas)} must be positive and finite: '
            'without regularisation, separable classes have no minimum. 1e-6 is almost none'
        )
