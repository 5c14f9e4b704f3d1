"""Linear support vector machines on frozen features, one per class: the VOC07 protocol with all labels or few.

Source: the protocol of VISSL and mmselfsup (Goyal et al., arXiv 1905.01235, sections 6.1 and 6.2). One thing differs:
with few labels, the cost is chosen on validation examples, never on the test set.
"""

import dataclasses
import warnings
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from simclr_jax.metrics.classification import average_precision
from simclr_jax.probes import linear_model
from simclr_jax.probes.checks import check_features, check_targets
from simclr_jax.probes.linear_model import Loss, Weights, predict_logits, principal_axes

# Costs of the protocol, from the strongest regularisation to the weakest.
COSTS = tuple(0.5**power for power in range(19, 3, -1)) + (1.0, 10.0, 100.0)
FOLDS = 3
# Weight of a positive example. A negative example has weight 1.
POSITIVE_WEIGHT = 2.0
# Negative examples for each positive one in the protocol with few labels.
NEGATIVES_A_POSITIVE = 19

_LIMITS = {'max_iterations': 1000, 'tolerance': 1e-8}


@dataclasses.dataclass(frozen=True)
class Machines:
    """One machine per class.

    Attributes:
        weights: Kernel and bias. Scores are features @ kernel + bias.
        costs: [K] float, the chosen cost of each class.
        validation_precision: [costs, K], the average precision on held-out examples for each cost and class.
    """

    weights: Weights
    costs: np.ndarray
    validation_precision: np.ndarray


def fit(features, targets, cost, *, weights=None) -> Weights:
    """Minimises for each class (|w|^2 + b^2) / 2 + cost * sum of weight * max(0, 1 - y (w x + b))^2.

    The optimum is that of scikit-learn's LinearSVC with class_weight {1: 2, -1: 1}. As in LinearSVC, the bias has the
    penalty of a weight whose feature is always 1.

    Args:
        features: [N, F], finite.
        targets: [N, K] of 1 (present), 0 (absent) and -1 (ignored).
        cost: Positive cost, a scalar for all classes or [K].
        weights: [N, K] non-negative weights of the examples in each class's sum, ones if None.

    Returns:
        The machines' kernel [F, K] and bias [K].

    Raises:
        ValueError: Shapes or values break a rule above. The message names the cure.

    Warns:
        RuntimeWarning: The search ended before the minimum. Features of length 1 bring the minimum nearer.
    """
    features = check_features('features', features)
    targets = _as_targets(targets, len(features))
    cost = _as_costs(cost)
    if cost.shape not in ((), targets.shape[1:]):
        raise ValueError(f'cost has shape {cost.shape}: pass one for all or one for each of {targets.shape[1]} classes')
    pool = _Pool(features)
    return pool.outward(pool.solve_gradually(targets, _example_weights(targets, weights), cost))


def fit_cross_validated(features, targets, *, costs: Sequence[float] | np.ndarray = COSTS, seed: int = 0) -> Machines:
    """Chooses the cost of each class by stratified 3-fold average precision, then fits to all examples.

    Args:
        features: [N, F], finite.
        targets: [N, K] of 1 (present), 0 (absent) and -1 (ignored). Each class needs at least three examples where it
            is present and three where it is absent.
        costs: Positive costs, in any order. Among equal precisions, the smallest cost wins.
        seed: Seed of the folds.

    Returns:
        The machines.

    Raises:
        ValueError: Shapes or values break a rule above. The message names the cure.

    Warns:
        RuntimeWarning: The last fit ended before its minimum, see `fit`.
    """
    features = check_features('features', features)
    targets = _as_targets(targets, len(features), least=FOLDS)
    costs = np.sort(_as_costs(costs))
    pool = _Pool(features)
    folds = stratified_folds(targets, seed=seed)
    precision = np.zeros((len(costs), targets.shape[1]))
    for fold in range(FOLDS):
        weights = _example_weights(targets, folds != fold)
        held_out = np.where(folds == fold, targets, -1)
        for number, machines in enumerate(pool.path(targets, weights, costs)):
            precision[number] += _precisions(pool.scores(machines), held_out) / FOLDS
    chosen = costs[np.argmax(precision, axis=0)]
    machines = pool.solve_gradually(targets, _example_weights(targets, None), chosen)
    return Machines(pool.outward(machines), chosen, precision)


def fit_low_shot(
    features, targets, validation_features, validation_targets, *, positives: int, seed: int,
    costs: Sequence[float] | np.ndarray = COSTS,
) -> Machines:  # fmt: skip
    """Fits to a few positive examples per class and 19 times as many negative ones.

    The cost of each class is chosen by average precision on validation examples.

    Args:
        features: [N, F], finite. Training examples are drawn from them by `draw_low_shot`.
        targets: [N, K] of 1 (present), 0 (absent) and -1 (ignored).
        validation_features: [M, F], finite.
        validation_targets: [M, K] of 1 (present), 0 (absent) and -1 (ignored).
        positives: Positive examples drawn for each class, at least 1.
        seed: Seed of the draw.
        costs: Positive costs, in any order. Among equal precisions, the smallest cost wins.

    Returns:
        The machines.

    Raises:
        ValueError: A class has fewer positive examples, or shapes or values break a rule above.
    """
    features = check_features('features', features)
    held_features = check_features('validation features', validation_features)
    linear_model.check_widths(features, held_features)
    if positives < 1:
        raise ValueError(f'positives={positives} must be at least 1; 1 to 96 are usual')
    targets = _as_targets(targets, len(features), least=positives)
    held_targets = _as_targets(validation_targets, len(held_features))
    costs = np.sort(_as_costs(costs))
    drawn = draw_low_shot(targets, positives=positives, seed=seed)
    rows = _drawn_first(drawn, positives)
    pool = _Pool(features[rows])
    weights = _example_weights(targets[rows], drawn[rows])
    found = [pool.outward(machines) for machines in pool.path(targets[rows], weights, costs)]
    precision = np.stack([_precisions(predict_logits(machines, held_features), held_targets) for machines in found])
    best = np.argmax(precision, axis=0)
    return Machines(_of_each_class(found, best), costs[best], precision)


def draw_low_shot(targets, *, positives: int, seed: int) -> np.ndarray:
    """Draws the examples that each class learns from: positive ones and 19 times as many negative ones.

    Where a class has fewer negative examples, all of them are drawn. A larger draw with the same seed contains the
    smaller one.

    Args:
        targets: [N, K] of 1 (present), 0 (absent) and -1 (ignored).
        positives: Positive examples per class, at most as many as each class has.
        seed: Seed of the draw. The draw of a class does not depend on the other classes.

    Returns:
        [N, K] bool, true where the class learns from the example.
    """
    drawn = np.zeros(targets.shape, bool)
    for number, column in enumerate(np.asarray(targets).T):
        generator = np.random.default_rng((seed, number))
        present, absent = (generator.permutation(np.flatnonzero(column == kind)) for kind in (1, 0))
        drawn[present[:positives], number] = True
        drawn[absent[: NEGATIVES_A_POSITIVE * positives], number] = True
    return drawn


def _drawn_first(drawn: np.ndarray, positives: int) -> np.ndarray:
    """Returns the rows drawn by any class, and further rows up to a number that all draws of this size share.

    All draws then have the same shape, so that one compiled program serves them.
    """
    largest = drawn.shape[1] * (1 + NEGATIVES_A_POSITIVE) * positives
    return np.argsort(~drawn.any(axis=1), kind='stable')[:largest]


def _of_each_class(found: list[Weights], best: np.ndarray) -> Weights:
    """Takes the machine of class k from found[best[k]], for each class."""
    classes = np.arange(len(best))
    kernels, biases = (np.stack([np.asarray(part) for part in parts]) for parts in zip(*found, strict=True))
    return Weights(jnp.asarray(kernels[best, :, classes].T), jnp.asarray(biases[best, classes]))


def stratified_folds(targets, *, seed: int) -> np.ndarray:
    """Divides the examples into three folds, separately for each class, with equal shares of positive examples.

    Args:
        targets: [N, K] of 1 (present), 0 (absent) and -1 (ignored).
        seed: Seed of the division. The division of a class does not depend on the other classes.

    Returns:
        [N, K] int, the fold 0, 1 or 2 of each example, or -1 where it is ignored.
    """
    folds = np.full(targets.shape, -1)
    for number, column in enumerate(np.asarray(targets).T):
        for kind in (0, 1):
            members = np.random.default_rng((seed, number, kind)).permutation(np.flatnonzero(column == kind))
            folds[members, number] = np.arange(len(members)) % FOLDS
    return folds


class _Pool:
    """Examples in coordinates along their principal axes. A feature that is always 1 replaces the bias."""

    def __init__(self, features: np.ndarray):
        ones = np.ones((len(features), 1), np.float32)
        features = np.concatenate([features, ones], axis=1)
        self._axes = principal_axes(features, centre=False)
        self._size = len(features)
        self._mesh = linear_model.mesh_for(features)
        (self._rows,) = linear_model.on_devices(self._mesh, self._axes.of(features))

    def path(self, targets, weights, costs):
        """Yields the machines at each of the ascending costs. Each fit starts at the machines before it."""
        examples, machines = self._with(targets, weights)
        for cost in costs:
            machines, _, _ = _solve(examples, cost, machines)
            yield machines

    def solve_gradually(self, targets, weights, cost) -> Weights:
        """Finds the machines at a cost, a scalar or [K], after a fit at each smaller cost of COSTS.

        Separable examples would need several times as many iterations if the search started at zeros.
        """
        examples, machines = self._with(targets, weights)
        for smaller in (step for step in COSTS if step < np.max(cost)):
            machines, _, _ = _solve(examples, np.minimum(smaller, cost), machines)
        machines, spent, converged = _solve(examples, cost, machines)
        if not converged:
            warnings.warn(
                f'cost={cost}: not at the minimum after {spent} iterations; normalise the features or lower the cost',
                RuntimeWarning,
                stacklevel=3,
            )
        return machines

    def _with(self, targets, weights):
        """Puts targets and weights [N, K] on the devices. Returns them after the rows, and machines of zeros."""
        examples = (self._rows, *linear_model.on_devices(self._mesh, targets, weights))
        return examples, linear_model.zeros(self._rows.shape[1], targets.shape[1])

    def scores(self, machines: Weights) -> np.ndarray:
        """Computes the scores [N, K] of the pool's own examples."""
        return predict_logits(machines, self._rows)[: self._size]

    def outward(self, machines: Weights) -> Weights:
        """Converts machines of the coordinates into machines of the features."""
        kernel = self._axes.directions @ np.asarray(machines.kernel)
        return Weights(jnp.asarray(kernel[:-1]), jnp.asarray(kernel[-1]))


def _solve(examples: tuple, cost, start: Weights) -> tuple[Weights, int, bool]:
    l2 = np.broadcast_to(1 / np.asarray(cost, np.float32), examples[1].shape[1])
    return linear_model.minimize(SQUARED_HINGE, examples, l2, start, has_bias=False, **_LIMITS)


def _squared_hinge_total(scores, targets, weights):
    signs = jnp.where(targets > 0, jnp.float32(1), jnp.float32(-1))
    return jnp.sum(weights * jnp.square(jnp.maximum(1 - signs * scores, 0)))


def _squared_hinge_curvature(scores, targets, weights):
    signs = jnp.where(targets > 0, jnp.float32(1), jnp.float32(-1))
    return 2 * weights * (signs * scores < 1).astype(jnp.float32)


SQUARED_HINGE = Loss(_squared_hinge_total, _squared_hinge_curvature)


def _example_weights(targets, weights) -> np.ndarray:
    weights = np.ones(targets.shape, np.float32) if weights is None else np.asarray(weights, np.float32)
    if weights.shape != targets.shape or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f'weights {weights.shape} must be {targets.shape} finite numbers, none negative')
    return weights * (targets >= 0) * np.where(targets > 0, np.float32(POSITIVE_WEIGHT), np.float32(1))


def _precisions(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.array([average_precision(scores[:, k], targets[:, k]) for k in range(targets.shape[1])])


def _as_targets(targets, num_examples: int, least: int = 1) -> np.ndarray:
    targets = np.asarray(targets)
    if targets.ndim != 2:
        raise ValueError(f'targets have shape {targets.shape}: pass [examples, classes] of 1, 0 and -1')
    targets = check_targets('targets', targets, num_examples, targets.shape[1])
    for kind, name in ((1, 'present'), (0, 'absent')):
        counts = (targets == kind).sum(axis=0)
        if counts.min() < least:
            raise ValueError(
                f'class {counts.argmin()} is {name} in {counts.min()} examples, at least {least} are needed: '
                'leave the class out, or ask for fewer'
            )
    return targets


def _as_costs(costs) -> np.ndarray:
    costs = np.asarray(costs, np.float64)
    if not costs.size or not (np.isfinite(costs) & (costs > 0)).all():
        raise ValueError(f'cost={costs.tolist()} must be positive and finite; 1 is a common choice')
    return costs
