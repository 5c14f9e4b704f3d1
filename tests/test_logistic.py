"""Logistic regression finds scikit-learn's optimum, and the path chooses as the protocol says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from simclr_jax.evaluators import logistic
from simclr_jax.evaluators.logistic import LAMBDAS, Weights, accuracy, fit, fit_path, objective, predict


@pytest.fixture(scope='module')
def digits():
    """Pixels 0..16, not standardised; some are constant."""
    features, labels = load_digits(return_X_y=True)
    return features.astype(np.float32), labels


@pytest.fixture(scope='module')
def uneven():
    """Correlated features, far from the origin, with scales from 0.01 to 100."""
    generator = np.random.default_rng(0)
    latent = generator.normal(size=(600, 16))
    labels = np.argmax(latent[:, :4] + 0.5 * generator.gumbel(size=(600, 4)), axis=1)
    mixed = latent @ (np.eye(16) + 0.2 * generator.normal(size=(16, 16)))
    return ((mixed + 3.0) * np.logspace(-2, 2, 16)).astype(np.float32), labels


def double_objective(kernel, bias, features, labels, l2):
    """The objective in NumPy, double precision."""
    kernel, bias = np.asarray(kernel, np.float64), np.asarray(bias, np.float64)
    logits = features.astype(np.float64) @ kernel + bias
    margins = logits - logits[np.arange(len(labels)), labels][:, None]
    return np.logaddexp.reduce(margins, axis=1).sum() + 0.5 * l2 * np.sum(kernel**2)


def reference_fit(features, labels, l2):
    """scikit-learn's optimum by Newton's method in double precision."""
    model = LogisticRegression(C=1 / l2, solver='newton-cg', tol=1e-9, max_iter=1000)
    return model.fit(features.astype(np.float64), labels)


@pytest.mark.parametrize(
    'name, l2',
    [('digits', 1e4), ('digits', 100.0), ('digits', 1.0), ('uneven', 1e3), ('uneven', 1.0), ('uneven', 0.01)],
)
def test_optimum_is_that_of_scikit_learn(name, l2, request):
    features, labels = request.getfixturevalue(name)
    train, test = slice(0, 400), slice(400, None)
    num_classes = labels.max() + 1
    reference = reference_fit(features[train], labels[train], l2)
    weights = fit(features[train], labels[train], num_classes, l2)

    found = double_objective(*weights, features[train], labels[train], l2)
    smallest = double_objective(reference.coef_.T, reference.intercept_, features[train], labels[train], l2)
    # The stopping rule aims at 1e-6; 1e-4 is what a comparison of protocols needs.
    assert abs(found / smallest - 1) < 1e-4
    assert abs(accuracy(weights, features[test], labels[test]) - reference.score(features[test], labels[test])) <= (
        1e-3
    )


def test_separated_classes_reach_the_optimum_of_weak_regularisation(digits):
    """The objective is about 1e-5 an example here: most of 1 - p is lost in float32 if computed like that."""
    features, labels = digits[0][:400], digits[1][:400]
    reference = reference_fit(features, labels, 1e-4)
    weights = fit(features, labels, 10, 1e-4)
    smallest = double_objective(reference.coef_.T, reference.intercept_, features, labels, 1e-4)
    assert double_objective(*weights, features, labels, 1e-4) < smallest * (1 + 1e-4)
    assert accuracy(weights, features, labels) == 1.0


def test_objective_is_the_cross_entropy_and_the_penalty(digits):
    features, labels = digits[0][:50], digits[1][:50]
    kernel = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32) / 30
    weights = Weights(jnp.asarray(kernel), jnp.linspace(-1, 1, 10))
    expected = double_objective(*weights, features, labels, 3.0)
    # A sum of 50 float32 terms.
    np.testing.assert_allclose(objective(weights, features, labels.astype(np.int32), 3.0), expected, rtol=1e-5)


def test_bias_is_not_regularised():
    """With a kernel pressed to zero the probabilities are the classes' frequencies, wherever features lie."""
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    features = 5.0 + np.random.default_rng(0).normal(size=(100, 2))
    weights = fit(features, labels, 3, 1e8)
    # The kernel left is of the order of 50 / l2.
    np.testing.assert_allclose(jax.nn.softmax(weights.bias), [0.5, 0.3, 0.2], atol=1e-4)
    np.testing.assert_allclose(weights.kernel, 0, atol=1e-5)


def test_weights_count_examples(uneven):
    """Weight 2 is the example twice, weight 0 is its absence."""
    features, labels = uneven[0][:400], uneven[1][:400]
    counts = np.tile([0, 2], 200)
    twice, twice_labels = np.repeat(features, counts, axis=0), np.repeat(labels, counts)
    weighted = fit(features, labels, 4, 1.0, weights=counts)
    repeated = fit(twice, twice_labels, 4, 1.0)
    # Both minimise to about 1e-6.
    np.testing.assert_allclose(
        double_objective(*weighted, twice, twice_labels, 1.0),
        double_objective(*repeated, twice, twice_labels, 1.0),
        rtol=1e-5,
    )


def test_start_does_not_change_the_optimum(digits):
    features, labels = digits[0][:400], digits[1][:400]
    cold = fit(features, labels, 10, 10.0)
    warm = fit(features, labels, 10, 10.0, initial=fit(features, labels, 10, 1e3))
    np.testing.assert_allclose(
        double_objective(*warm, features, labels, 10.0),
        double_objective(*cold, features, labels, 10.0),
        rtol=1e-5,
    )


def test_a_class_with_one_example_is_learned_and_two_classes_suffice():
    features = np.concatenate([np.random.default_rng(0).normal(size=(30, 3)), [[9.0, 9.0, 9.0]]])
    labels = np.array([0] * 30 + [1])
    np.testing.assert_array_equal(predict(fit(features, labels, 2, 1e-3), features), labels)


def test_path_goes_from_strong_to_weak_and_its_solutions_are_those_of_single_fits(digits):
    features, labels = digits
    train, validation, test = slice(0, 300), slice(300, 400), slice(400, None)
    path = fit_path(features[train], labels[train], features[validation], labels[validation], 10)
    assert path.lambdas == LAMBDAS
    assert len(LAMBDAS) == 45
    np.testing.assert_allclose([LAMBDAS[0], LAMBDAS[-1]], [1e5, 1e-6])
    assert (np.diff(np.log(LAMBDAS)) < 0).all()
    np.testing.assert_allclose(np.diff(np.log10(LAMBDAS)), -0.25)

    chosen = path.lambdas.index(path.l2)
    assert path.validation_accuracy[chosen] == max(path.validation_accuracy)
    assert path.validation_accuracy.index(max(path.validation_accuracy)) == chosen
    for step in (0, chosen):
        single = reference_fit(features[train], labels[train], path.lambdas[step])
        # One example in a hundred may sit on the boundary between two classes.
        expected = single.score(features[validation], labels[validation])
        assert abs(path.validation_accuracy[step] - expected) <= 0.0101

    refitted = reference_fit(features[:400], labels[:400], path.l2)
    np.testing.assert_allclose(
        double_objective(*path.weights, features[:400], labels[:400], path.l2),
        double_objective(refitted.coef_.T, refitted.intercept_, features[:400], labels[:400], path.l2),
        rtol=1e-4,
    )
    assert abs(accuracy(path.weights, features[test], labels[test]) - refitted.score(features[test], labels[test])) <= (
        1e-3
    )


def test_ties_choose_the_strongest_regularisation_and_one_program_serves_all():
    features = np.array([[-1.0], [1.0], [-2.0], [2.0]])
    labels = np.array([0, 1, 0, 1])
    before = logistic._descend._cache_size()
    path = fit_path(features, labels, features, labels, 2, lambdas=[1e-2, 1e2, 1.0])
    assert path.lambdas == (1e2, 1.0, 1e-2)
    assert path.validation_accuracy == (1.0, 1.0, 1.0)
    assert path.l2 == 1e2
    assert logistic._descend._cache_size() == before + 1


def test_too_few_iterations_are_reported(digits):
    with pytest.warns(RuntimeWarning, match='raise max_iterations'):
        fit(digits[0][:400], digits[1][:400], 10, 1.0, max_iterations=2)


GOOD = {'features': np.eye(4), 'labels': np.array([0, 1, 2, 1]), 'num_classes': 3, 'l2': 1.0}


@pytest.mark.parametrize(
    'change, message',
    [
        ({'labels': np.zeros(4, int), 'num_classes': 1}, 'two or more classes'),
        ({'labels': np.zeros(4, int)}, r'classes \[1, 2\] of 3 have no training example'),
        ({'weights': np.array([1, 1, 0, 1])}, r'classes \[2\] of 3'),
        ({'weights': -np.ones(4)}, 'none negative'),
        ({'labels': np.array([0, 1, 2, 3])}, r'0\.\.3, must be in 0\.\.2'),
        ({'labels': np.array([0, 1, 2, -1])}, 'leave unlabelled'),
        ({'labels': np.array([0, 1, 2])}, 'one integer for each of 4'),
        ({'features': np.full((4, 4), np.nan)}, 'NaN or infinity'),
        ({'features': np.ones(4)}, 'shape'),
        ({'l2': 0.0}, 'must be positive'),
        ({'initial': Weights(jnp.zeros((5, 3)), jnp.zeros(3))}, r'must be \(4, 3\)'),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        fit(**(GOOD | change))


def test_path_needs_equal_widths_and_every_class_in_training():
    labels = np.array([0, 1, 2, 1])
    with pytest.raises(ValueError, match='training has 4 features and validation 5'):
        fit_path(np.eye(4), labels, np.ones((4, 5)), labels, 3)
    with pytest.raises(ValueError, match=r'classes \[2\] of 3'):
        fit_path(np.eye(4), labels % 2, np.eye(4), labels, 3)
