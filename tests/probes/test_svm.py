"""Support vector machines find scikit-learn's optimum; costs are chosen on held-out examples alone.

Nearly all tests have 400 examples of 64 features and 10 classes: one compiled program.
"""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from sklearn.svm import LinearSVC

from simclr_jax import sharding
from simclr_jax.metrics.classification import mean_average_precision
from simclr_jax.probes import linear_model, svm
from simclr_jax.probes.linear_model import predict_logits
from support.runs import mesh_of

NUM_CLASSES = 10
# A few of the protocol's.
COSTS = (0.5**12, 0.5**4, 1.0)


@pytest.fixture(scope='module')
def digits():
    """Pixels from 0 to 1 and, one-hot, the digit: 400 to fit to and the rest."""
    features, labels = load_digits(return_X_y=True)
    features, targets = (features / 16).astype(np.float32), np.eye(NUM_CLASSES, dtype=int)[labels]
    return features[:400], targets[:400], features[400:], targets[400:]


def several_labels(targets):
    """Each digit belongs to three classes."""
    return targets | np.roll(targets, 1, axis=1) | np.roll(targets, 2, axis=1)


def objective(kernel, bias, features, targets, cost, weights):
    """Of each class, in NumPy and double precision."""
    kernel, bias = np.asarray(kernel, np.float64), np.asarray(bias, np.float64)
    margins = np.where(targets == 1, 1, -1) * (features.astype(np.float64) @ kernel + bias)
    counts = weights * (targets >= 0) * np.where(targets == 1, 2, 1)
    losses = np.sum(counts * np.maximum(1 - margins, 0) ** 2, axis=0)
    return (np.sum(kernel**2, axis=0) + bias**2) / 2 + cost * losses


def reference_fit(features, targets, cost, weights):
    """scikit-learn's machine of each class by Newton's method: kernel [F, K] and bias [K]."""
    kernels, biases = [], []
    for column, own in zip(targets.T, weights.T, strict=True):
        counted = (column >= 0) & (own > 0)
        model = LinearSVC(C=cost, dual=False, class_weight={1: 2, -1: 1}, tol=1e-10, max_iter=10000)
        rows, signs = features[counted].astype(np.float64), np.where(column[counted] == 1, 1, -1)
        model.fit(rows, signs, sample_weight=own[counted])
        kernels.append(model.coef_[0])
        biases.append(model.intercept_[0])
    return np.stack(kernels, axis=1), np.array(biases)


def assert_optimal(machines, features, targets, cost, weights):
    smallest = objective(*reference_fit(features, targets, cost, weights), features, targets, cost, weights)
    found = objective(*machines, features, targets, cost, weights)
    # Far below what moves a precision. The stopping rule, of the sum over classes, aims at about 1e-7.
    np.testing.assert_allclose(found.sum(), smallest.sum(), rtol=1e-4)


@pytest.mark.parametrize('cost', [0.5**12, 0.5**4, 1.0, 100.0])
def test_optimum_is_that_of_scikit_learn(cost, digits):
    features, targets, held_features, held_targets = digits
    everyone = np.ones(targets.shape)
    machines = svm.fit(features, targets, cost)
    assert_optimal(machines, features, targets, cost, everyone)
    kernel, bias = reference_fit(features, targets, cost, everyone)
    precision = mean_average_precision(predict_logits(machines, held_features), held_targets)
    # Two of 1397 images with nearly the same score may change places.
    assert abs(precision - average_precision_score(held_targets, held_features @ kernel + bias)) < 1e-3


def test_several_labels_ignored_entries_and_weights(digits):
    features, targets, _, _ = digits
    generator = np.random.default_rng(0)
    targets = np.where(generator.random(targets.shape) < 0.3, -1, several_labels(targets))
    weights = generator.choice([0.0, 0.5, 1.0, 3.0], targets.shape)
    machines = svm.fit(features, targets, 1.0, weights=weights)
    assert_optimal(machines, features, targets, 1.0, weights)


def test_ignored_entries_take_no_part(digits):
    """Whatever lies in the features of an example that all classes ignore, the machines are the same."""
    features, targets, _, _ = digits
    targets = np.where(np.arange(400)[:, None] < 40, -1, targets)
    changed = features.copy()
    changed[:40] = np.random.default_rng(0).normal(size=(40, 64))
    first, second = (svm.fit(rows, targets, 1.0) for rows in (features, changed))
    # Other axes, another way to the same minimum; kernels are of the order of 1.
    np.testing.assert_allclose(first.kernel, second.kernel, atol=3e-3)


def test_each_class_may_have_its_own_cost(digits):
    features, targets, _, _ = digits
    costs = np.resize(COSTS, NUM_CLASSES)
    mixed = objective(*svm.fit(features, targets, costs), features, targets, costs, 1.0)
    for cost in COSTS:
        alike = objective(*svm.fit(features, targets, cost), features, targets, cost, 1.0)
        # Both are within about 1e-7 of the minimum, as sums over the classes; the least is a hundredth of the sum.
        np.testing.assert_allclose(mixed[costs == cost], alike[costs == cost], rtol=1e-4)


def test_pixels_from_0_to_16_are_separated_within_the_iterations(digits):
    """From zeros, a thousand iterations leave the objective far above its minimum; by smaller costs they suffice."""
    features, targets, _, _ = digits
    assert_optimal(svm.fit(16 * features, targets, 1.0), 16 * features, targets, 1.0, np.ones(targets.shape))


def test_too_few_iterations_are_reported(digits, monkeypatch):
    features, targets, _, _ = digits
    monkeypatch.setitem(svm._LIMITS, 'max_iterations', 2)
    with pytest.warns(RuntimeWarning, match='cost=1.0: not at the minimum after 2 iterations; normalise'):
        svm.fit(features, targets, 1.0)


# Cross-validation.


def test_folds_are_stratified(digits):
    targets = np.where(np.random.default_rng(0).random((400, NUM_CLASSES)) < 0.1, -1, digits[1])
    folds = svm.stratified_folds(targets, seed=0)
    np.testing.assert_array_equal(folds >= 0, targets >= 0)
    for kind in (0, 1):
        sizes = np.stack([((folds == fold) & (targets == kind)).sum(axis=0) for fold in range(svm.FOLDS)])
        assert (sizes.max(axis=0) - sizes.min(axis=0) <= 1).all()
        assert sizes.min() >= 1
    assert (svm.stratified_folds(targets, seed=1) != folds).any()


def test_cost_has_the_highest_precision_on_examples_held_out(digits):
    features, targets, _, _ = digits
    generator = np.random.default_rng(0)
    # The later the class, the more labels are wrong, and the stronger the regularisation that it needs.
    targets = np.where(generator.random(targets.shape) < np.linspace(0, 0.3, NUM_CLASSES), 1 - targets, targets)
    machines = svm.fit_cross_validated(features, targets, costs=COSTS[::-1], seed=3)

    folds = svm.stratified_folds(targets, seed=3)
    expected = np.zeros((len(COSTS), NUM_CLASSES))
    for number, cost in enumerate(COSTS):
        for fold in range(svm.FOLDS):
            kernel, bias = reference_fit(features, targets, cost, (folds != fold).astype(float))
            scores = features @ kernel + bias
            for k in range(NUM_CLASSES):
                held = folds[:, k] == fold
                expected[number, k] += average_precision_score(targets[held, k], scores[held, k]) / svm.FOLDS
    # Two images with nearly the same score may change places, which moves the precision of 20 positives by about 1e-3.
    np.testing.assert_allclose(machines.validation_precision, expected, atol=2e-3)
    np.testing.assert_array_equal(machines.costs, np.array(COSTS)[np.argmax(machines.validation_precision, axis=0)])
    assert len(set(machines.costs)) > 1
    found = objective(*machines.weights, features, targets, machines.costs, 1.0)
    alone = svm.fit(features, targets, machines.costs)
    np.testing.assert_allclose(found, objective(*alone, features, targets, machines.costs, 1.0), rtol=1e-4)


def test_of_equal_precisions_the_smallest_cost_wins(digits):
    one_hot = digits[1]
    features = np.pad(one_hot, [(0, 0), (0, 54)])
    machines = svm.fit_cross_validated(features, one_hot, costs=COSTS)
    np.testing.assert_array_equal(machines.validation_precision, 1)
    np.testing.assert_array_equal(machines.costs, COSTS[0])


def test_one_compiled_program_serves_costs_folds_and_draws(digits):
    features, targets, held_features, held_targets = digits
    svm.fit(features, targets, 1.0)
    before = linear_model._descend._cache_size()
    svm.fit_cross_validated(features, targets, costs=COSTS, seed=0)
    for positives, seed in ((2, 0), (2, 1), (4, 0)):
        svm.fit_low_shot(
            features, targets, held_features, held_targets, positives=positives, seed=seed, costs=COSTS[:2]
        )
    assert linear_model._descend._cache_size() == before
    for seed in range(3):
        drawn = svm.draw_low_shot(targets, positives=1, seed=seed)
        rows = svm._drawn_first(drawn, 1)
        assert len(set(rows)) == 200
        assert drawn[rows].sum() == drawn.sum()


# Few labels.


@pytest.mark.parametrize('positives', [1, 4, 20])
def test_draw_is_of_k_positives_and_19k_negatives_or_all(positives, digits):
    targets = np.where(np.random.default_rng(0).random((400, NUM_CLASSES)) < 0.1, -1, digits[1])
    drawn = svm.draw_low_shot(targets, positives=positives, seed=0)
    np.testing.assert_array_equal((drawn & (targets == 1)).sum(axis=0), positives)
    negatives = (targets == 0).sum(axis=0)
    np.testing.assert_array_equal((drawn & (targets == 0)).sum(axis=0), np.minimum(19 * positives, negatives))
    assert not (drawn & (targets == -1)).any()
    larger = svm.draw_low_shot(targets, positives=positives + 1, seed=0)
    assert (larger | ~drawn).all()
    assert (svm.draw_low_shot(targets, positives=positives, seed=1) != drawn).any()
    np.testing.assert_array_equal(svm.draw_low_shot(targets, positives=positives, seed=0), drawn)


def test_low_shot_learns_from_the_draw_and_chooses_on_the_validation_examples(digits):
    """Of one half of the pixels validation examples are noise: what is best there is not what is best on the test."""
    features, targets, test_features, test_targets = digits
    held_features, held_targets = features[:200].copy(), targets[:200]
    held_features[:, ::2] = 3 * np.random.default_rng(0).random((200, 32))
    machines = svm.fit_low_shot(features, targets, held_features, held_targets, positives=4, seed=5, costs=svm.COSTS)

    drawn = svm.draw_low_shot(targets, positives=4, seed=5).astype(float)
    validation, test = [], []
    for cost in svm.COSTS:
        kernel, bias = reference_fit(features, targets, cost, drawn)
        precisions = [
            [average_precision_score(classes[:, k], (rows @ kernel + bias)[:, k]) for k in range(NUM_CLASSES)]
            for rows, classes in ((held_features, held_targets), (test_features, test_targets))
        ]
        validation.append(precisions[0])
        test.append(precisions[1])
    np.testing.assert_allclose(machines.validation_precision, validation, atol=2e-3)
    chosen = np.array(svm.COSTS).searchsorted(machines.costs)
    classes = np.arange(NUM_CLASSES)
    assert (np.array(validation)[chosen, classes] >= np.max(validation, axis=0) - 2e-3).all()
    assert (np.array(test)[chosen, classes] < np.max(test, axis=0) - 2e-3).sum() >= 5

    scores = predict_logits(machines.weights, test_features)
    reached = [average_precision_score(test_targets[:, k], scores[:, k]) for k in range(NUM_CLASSES)]
    np.testing.assert_allclose(reached, np.array(test)[chosen, classes], atol=2e-3)


def test_more_positives_are_better_on_average(digits):
    features, targets, test_features, test_targets = digits

    def precision(positives, seed):
        settings = {'positives': positives, 'seed': seed, 'costs': COSTS}
        machines = svm.fit_low_shot(features, targets, test_features[:300], test_targets[:300], **settings)
        return mean_average_precision(predict_logits(machines.weights, test_features[300:]), test_targets[300:])

    few, some, many = (np.mean([precision(positives, seed) for seed in range(2)]) for positives in (2, 6, 20))
    assert few + 0.02 < some
    assert some + 0.01 < many


# Known answers.


def test_separable_classes_are_separated_with_the_widest_margin():
    """Two points a distance of 2 apart: the hard margin's weight is 1 along the axis between them."""
    signs = np.resize([1, -1], 400)
    features = np.zeros((400, 64))
    features[:, 0] = signs
    targets = np.tile((signs[:, None] > 0).astype(int), (1, NUM_CLASSES))
    machines = svm.fit(features, targets, 100.0)
    # Each margin falls short of 1 by about 1 / (2 * cost * weight of all examples).
    np.testing.assert_allclose(machines.kernel[0], 1, atol=1e-4)
    np.testing.assert_allclose(machines.kernel[1:], 0, atol=1e-6)
    np.testing.assert_allclose(machines.bias, 0, atol=1e-4)


def test_noise_is_not_learned(digits):
    """On examples held out, the average precision of random scores is about the frequency of the class."""
    generator = np.random.default_rng(0)
    targets = digits[1]
    machines = svm.fit(generator.normal(size=(400, 64)), targets, 1.0)
    held = np.tile(targets, (10, 1))
    precision = mean_average_precision(predict_logits(machines, generator.normal(size=(4000, 64))), held)
    # Of 4000 images and ten classes it spreads by some 0.003.
    assert abs(precision - 0.1) < 0.02


def test_a_single_example_is_found_and_an_absent_class_is_left_out(digits):
    features, targets, held_features, held_targets = digits
    first_nine = np.flatnonzero(targets[:, 9])[0]
    kept = (targets[:, 9] == 0) | (np.arange(400) == first_nine)
    single = np.where(kept[:, None], targets, -1)
    machines = svm.fit(features, single, 100.0)
    scores = predict_logits(machines, features[kept])
    assert scores[:, 9].argmax() == np.flatnonzero(kept).searchsorted(first_nine)
    # Without nines in the test set the mean is that of the other nine classes.
    without = held_targets[:, 9] == 0
    held_scores = predict_logits(machines, held_features[without])
    expected = average_precision_score(held_targets[without, :9], held_scores[:, :9])
    assert mean_average_precision(held_scores, held_targets[without]) == pytest.approx(expected)


def test_one_hot_clusters_get_their_sign_and_indistinguishable_classes_a_third():
    """Eights and nines look the same: a positive counts twice, the minimum of 2 (1 - s)^2 + (1 + s)^2 is at 1 / 3."""
    labels = np.arange(400) % NUM_CLASSES
    features = np.eye(64)[np.minimum(labels, 8)]
    machines = svm.fit(features, np.eye(NUM_CLASSES, dtype=int)[labels], 100.0)
    expected = 2 * np.eye(NUM_CLASSES)[:9] - 1
    expected[8, 8:] = 1 / 3
    # The penalty holds scores back by about 1 / (2 * cost * 40 examples).
    np.testing.assert_allclose(predict_logits(machines, np.eye(64)[:9]), expected, atol=1e-3)


# Devices.


def test_rows_are_divided_among_all_devices_and_one_device_gives_the_same(digits):
    features, targets = digits[0][:397], digits[1][:397]
    rows = np.pad(features, [(0, 0), (0, 1)], constant_values=1)
    weights = svm._example_weights(targets, None)
    solutions = []
    for devices in (jax.devices(), jax.devices()[:1]):
        examples = linear_model.on_devices(sharding.make_mesh(devices), rows, targets, weights)
        for array in examples:
            shares = [shard.data.shape[0] for shard in array.addressable_shards]
            assert shares == [-(-397 // len(devices))] * len(devices)
        start = linear_model.zeros(65, NUM_CLASSES)
        machines, _, converged = linear_model.minimize(
            svm.SQUARED_HINGE, examples, np.ones(NUM_CLASSES), start, has_bias=False, **svm._LIMITS
        )
        assert converged
        solutions.append(objective(machines.kernel[:-1], machines.kernel[-1], features, targets, 1.0, 1.0))
    # Sums in another order: both are within about 1e-7 of the minimum.
    np.testing.assert_allclose(*solutions, rtol=1e-5)


def test_several_processes_fit_few_features_on_their_own_and_many_together(monkeypatch):
    features = np.zeros((8, 4), np.float32)
    monkeypatch.setattr(sharding, 'make_mesh', mesh_of(len(jax.devices())))
    monkeypatch.setattr(jax, 'local_devices', lambda: jax.devices()[:2])
    assert linear_model.mesh_for(features).size == len(jax.devices())
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    assert list(linear_model.mesh_for(features).devices) == jax.devices()[:2]
    monkeypatch.setattr(linear_model, 'OWN_BYTES', features.nbytes - 1)
    assert linear_model.mesh_for(features).size == len(jax.devices())


@pytest.mark.parametrize('devices', [1, 8])
def test_all_fits_of_a_search_are_one_program(devices, digits, monkeypatch):
    """Also from where the last one ended: their arrays stay in their places on the devices."""
    monkeypatch.setattr(sharding, 'make_mesh', mesh_of(devices))
    before = linear_model._descend._cache_size()
    svm.fit(digits[0][:97], digits[1][:97], 1.0)
    assert linear_model._descend._cache_size() == before + 1


# Mistakes.

GOOD = {'features': np.eye(4), 'targets': np.array([[1, 0], [0, 1], [1, 1], [0, 0]]), 'cost': 1.0}


@pytest.mark.parametrize(
    'change, message',
    [
        ({'targets': np.array([0, 1, 1, 0])}, r'targets have shape \(4,\): pass \[examples, classes\]'),
        ({'targets': np.ones((3, 2), int)}, r'targets has shape \(3, 2\).* for each of 4 features'),
        ({'targets': np.full((4, 2), 2)}, r'1 \(present\), 0 \(absent\) or -1 \(ignored\)'),
        ({'targets': np.array([[1, 0], [0, 0], [1, -1], [0, 0]])}, 'class 1 is present in 0 examples, at least 1'),
        ({'targets': np.array([[1, 0], [1, 1], [-1, 1], [1, 0]])}, 'class 0 is absent in 0 examples, at least 1'),
        ({'features': np.full((4, 4), np.inf)}, 'NaN or infinity'),
        ({'features': np.ones(4)}, 'shape'),
        ({'cost': 0.0}, 'cost=0.0 must be positive and finite'),
        ({'cost': np.array([1.0, -2.0])}, r'cost=\[1.0, -2.0\] must be positive'),
        ({'cost': np.ones(3)}, r'shape \(3,\): pass one for all or one for each of 2 classes'),
        ({'weights': -np.ones((4, 2))}, 'none negative'),
        ({'weights': np.ones(4)}, r'weights \(4,\) must be \(4, 2\)'),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        svm.fit(**(GOOD | change))


def test_mistakes_of_cross_validation_and_few_labels_are_named(digits):
    features, targets, held_features, held_targets = digits
    few = np.where(np.arange(400)[:, None] < 20, targets, 0)
    with pytest.raises(ValueError, match=r'is present in 2 examples, at least 3 .* leave the class out'):
        svm.fit_cross_validated(features, few)
    with pytest.raises(ValueError, match='must be positive and finite'):
        svm.fit_cross_validated(features, targets, costs=())
    draw = {'positives': 96, 'seed': 0}
    with pytest.raises(ValueError, match=r'present in \d+ examples, at least 96 .* ask for fewer'):
        svm.fit_low_shot(features, targets, held_features, held_targets, **draw)
    with pytest.raises(ValueError, match='positives=0 must be at least 1'):
        svm.fit_low_shot(features, targets, held_features, held_targets, positives=0, seed=0)
    with pytest.raises(ValueError, match='training has 64 features and validation 63'):
        svm.fit_low_shot(features, targets, held_features[:, 1:], held_targets, **draw)
