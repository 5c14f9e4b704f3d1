"""Logistic regression finds scikit-learn's optimum, and the path chooses as the protocol says.

Most tests have 400 examples of 64 features in 10 classes, or of 16 features in 4: a compiled program each.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from simclr_jax import sharding
from simclr_jax.metrics.classification import mean_average_precision
from simclr_jax.probes import linear_model
from simclr_jax.probes.linear_model import predict_logits
from simclr_jax.probes.logistic import LAMBDAS, Weights, accuracy, fit, fit_path, objective, predict
from support.runs import mesh_of


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
    with warnings.catch_warnings():
        # It goes on until rounding stops it, which on some processors it says.
        warnings.filterwarnings('ignore', '(?i)rounding errors prevent|(the )?line search')
        return model.fit(features.astype(np.float64), labels)


def assert_optimal(weights, features, labels, l2):
    reference = reference_fit(features, labels, l2)
    found = double_objective(*weights, features, labels, l2)
    smallest = double_objective(reference.coef_.T, reference.intercept_, features, labels, l2)
    # The stopping rule aims at 1e-6; 1e-4 is what a comparison of protocols needs.
    assert abs(found / smallest - 1) < 1e-4


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

    assert_optimal(weights, features[train], labels[train], l2)
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


def test_bias_is_not_regularised(uneven):
    """With a kernel pressed to zero the probabilities are the classes' frequencies, wherever features lie."""
    features, labels = uneven[0][:400], uneven[1][:400]
    weights = fit(features, labels, 4, 1e12)
    # The kernel left is of the order of 400 examples of size 100, over l2.
    np.testing.assert_allclose(weights.kernel, 0, atol=1e-6)
    np.testing.assert_allclose(jax.nn.softmax(weights.bias), np.bincount(labels) / 400, atol=1e-4)


@pytest.mark.parametrize('rows', [397, 393])
def test_any_number_of_examples_is_fitted_on_eight_devices(rows, uneven, monkeypatch):
    features, labels = uneven[0][:rows], uneven[1][:rows]
    monkeypatch.setattr(sharding, 'make_mesh', mesh_of(8))
    assert_optimal(fit(features, labels, 4, 1.0), features, labels, 1.0)


def test_far_from_the_origin(uneven):
    """A thousand times their spread from it, the optimum is that of the features moved back."""
    labels = uneven[1][:400]
    far = (uneven[0][:400] / uneven[0][:400].std(axis=0) + 1000).astype(np.float32)
    near = far.astype(np.float64) - 1000
    kernel, bias = (np.asarray(part, np.float64) for part in fit(far, labels, 4, 1.0))
    assert_optimal((kernel, bias + 1000 * kernel.sum(axis=0)), near, labels, 1.0)


def test_fewer_examples_than_features(uneven):
    features, labels = np.random.default_rng(0).normal(size=(16, 40)).astype(np.float32), np.arange(16) % 4
    assert_optimal(fit(features, labels, 4, 0.1), features, labels, 0.1)


def test_wide_features_are_not_rotated(uneven, monkeypatch):
    monkeypatch.setattr(linear_model, 'MOST_AXES', 8)
    features, labels = uneven[0][:400], uneven[1][:400]
    assert_optimal(fit(features, labels, 4, 1.0), features, labels, 1.0)


def reference_of_several_labels(features, targets, l2):
    """scikit-learn's optimum of each class against the others: kernel [F, K] and bias [K]."""
    models = [reference_fit(features[column >= 0], column[column >= 0], l2) for column in targets.T]
    return np.concatenate([model.coef_ for model in models]).T, np.concatenate([model.intercept_ for model in models])


def several_labels(labels):
    """An example of class k shows k and k + 1; a tenth of the entries is ignored."""
    targets = np.eye(4, dtype=int)[labels] | np.eye(4, dtype=int)[(labels + 1) % 4]
    return np.where(np.random.default_rng(0).random(targets.shape) < 0.1, -1, targets)


def double_objective_of_several_labels(kernel, bias, features, targets, l2):
    """The objective in NumPy, double precision."""
    kernel, bias = np.asarray(kernel, np.float64), np.asarray(bias, np.float64)
    logits = features.astype(np.float64) @ kernel + bias
    losses = np.logaddexp(0, np.where(targets == 1, -logits, logits))
    return losses[targets >= 0].sum() + 0.5 * l2 * np.sum(kernel**2)


@pytest.mark.parametrize('l2', [100.0, 0.01])
def test_several_labels_an_example_are_one_regression_against_the_others_each(l2, uneven):
    features, targets = uneven[0][:400], several_labels(uneven[1][:400])
    kernel, bias = reference_of_several_labels(features, targets, l2)
    found = double_objective_of_several_labels(*fit(features, targets, 4, l2), features, targets, l2)
    assert abs(found / double_objective_of_several_labels(kernel, bias, features, targets, l2) - 1) < 1e-4


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
    assert path.validation_score[chosen] == max(path.validation_score)
    assert path.validation_score.index(max(path.validation_score)) == chosen
    for step in (0, chosen):
        single = reference_fit(features[train], labels[train], path.lambdas[step])
        # One example in a hundred may sit on the boundary between two classes.
        expected = single.score(features[validation], labels[validation])
        assert abs(path.validation_score[step] - expected) <= 0.0101

    refitted = reference_fit(features[:400], labels[:400], path.l2)
    assert_optimal(path.weights, features[:400], labels[:400], path.l2)
    assert abs(accuracy(path.weights, features[test], labels[test]) - refitted.score(features[test], labels[test])) <= (
        1e-3
    )
    assert path.unfinished == ()


def test_ties_choose_the_strongest_regularisation_and_one_program_serves_all():
    features, labels = one_hot_clusters()
    fit(features, labels, 4, 1.0)
    before = linear_model._descend._cache_size()
    path = fit_path(features[:300], labels[:300], features[300:], labels[300:], 4, lambdas=[1e-2, 1e2, 1.0])
    assert path.lambdas == (1e2, 1.0, 1e-2)
    assert path.validation_score == (1.0, 1.0, 1.0)
    assert path.l2 == 1e2
    assert linear_model._descend._cache_size() == before


def test_path_of_several_labels_chooses_by_the_score_that_is_asked_for(uneven):
    features, targets = uneven[0][:400], several_labels(uneven[1][:400])
    lambdas = (1e4, 10.0, 1e-2)
    path = fit_path(
        features[:300], targets[:300], features[300:], targets[300:], 4, lambdas=lambdas, score=mean_average_precision
    )
    for l2, found in zip(lambdas, path.validation_score, strict=True):
        kernel, bias = reference_of_several_labels(features[:300], targets[:300], l2)
        # Two of a hundred examples with nearly the same score may change places.
        assert abs(found - mean_average_precision(features[300:] @ kernel + bias, targets[300:])) < 2e-3
    assert path.validation_score[lambdas.index(path.l2)] == max(path.validation_score)

    def worst(logits, held):
        return -mean_average_precision(logits, held)

    opposite = fit_path(features[:300], targets[:300], features[300:], targets[300:], 4, lambdas=lambdas, score=worst)
    assert opposite.validation_score == tuple(-score for score in path.validation_score)
    assert opposite.l2 == lambdas[np.argmin(path.validation_score)]


def test_path_says_where_the_iterations_did_not_suffice(uneven):
    features, labels = uneven[0][:400], uneven[1][:400]
    examples = features[:300], labels[:300], features[300:], labels[300:]
    path = fit_path(*examples, 4, lambdas=(1e12, 1e-3), max_iterations=5)
    assert path.unfinished == (1e-3,)
    assert path.iterations[1] == 5


# Known answers.


def one_hot_clusters():
    labels = np.arange(400) % 4
    return np.eye(16)[labels], labels


def test_one_hot_clusters_are_told_apart_alike():
    """By symmetry kernel k is a at k and -a / 3 elsewhere, where the gradient of the objective is 0."""
    features, labels = one_hot_clusters()
    weights = fit(features, labels, 4, 1.0)
    np.testing.assert_allclose(weights.kernel[4:], 0, atol=1e-6)
    logits = predict_logits(weights, np.eye(16)[:4])
    own = float(weights.kernel[0, 0])
    np.testing.assert_allclose(weights.kernel[:4], own * (4 * np.eye(4) - 1) / 3, atol=1e-3 * own)
    # A hundred examples a cluster pull with 1 - p each, the penalty with the weight.
    pull = 100 * (1 - np.diag(jax.nn.softmax(logits)))
    np.testing.assert_allclose(pull, own, rtol=1e-2)


def test_noise_is_not_learned(uneven):
    """On examples held out, the accuracy of random labels is that of chance."""
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(4400, 16)), generator.integers(0, 4, 4400)
    weights = fit(features[:400], labels[:400], 4, 1.0)
    # Of 4000 images it spreads by 0.007.
    assert abs(accuracy(weights, features[400:], labels[400:]) - 0.25) < 0.03


def test_a_class_with_one_example_is_learned(uneven):
    features = np.concatenate([uneven[0][:399], [np.full(16, 900.0)]])
    labels = np.append(uneven[1][:399] % 3, 3)
    weights = fit(features, labels, 4, 1e-2)
    predicted = predict(weights, features)
    assert predicted[-1] == 3
    assert (predicted[:-1] < 3).all()


def test_classes_may_be_absent_from_validation_and_test(uneven):
    features, labels = uneven[0][:400], uneven[1][:400]
    order = np.argsort(labels == 0, kind='stable')[::-1]
    features, labels = features[order], labels[order]
    train, held = slice(0, 300), slice(300, 400)
    assert set(labels[held]) == {1, 2, 3}
    path = fit_path(features[train], labels[train], features[held], labels[held], 4, lambdas=(1.0,))
    reference = reference_fit(features[train], labels[train], 1.0)
    # One example in a hundred may sit on the boundary between two classes.
    assert abs(path.validation_score[0] - reference.score(features[held], labels[held])) <= 0.0101


def test_indistinguishable_classes_share_their_probability(uneven):
    """Each example is there as a class 2 and as a class 3."""
    features, labels = np.repeat(uneven[0][:200], 2, axis=0), np.repeat(np.minimum(uneven[1][:200], 2), 2)
    labels[1::2] += labels[1::2] == 2
    probabilities = jax.nn.softmax(predict_logits(fit(features, labels, 4, 1.0), features))
    np.testing.assert_allclose(probabilities[:, 2], probabilities[:, 3], atol=1e-3)


def test_too_few_iterations_are_reported(digits):
    with pytest.warns(RuntimeWarning, match='raise max_iterations'):
        fit(digits[0][:400], digits[1][:400], 10, 1.0, max_iterations=2)


GOOD = {'features': np.eye(4), 'labels': np.array([0, 1, 2, 1]), 'num_classes': 3, 'l2': 1.0}


@pytest.mark.parametrize(
    'change, message',
    [
        ({'labels': np.zeros(4, int), 'num_classes': 1}, 'at least two classes with one example each'),
        ({'labels': np.zeros(4, int)}, r'classes \[1, 2\] of 3 have no training example'),
        ({'weights': np.array([1, 1, 0, 1])}, r'classes \[2\] of 3'),
        (
            {'labels': np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, -1]])},
            r'classes \[2\] of 3 are present, or absent',
        ),
        (
            {'labels': np.array([[1, 0, 1], [1, 1, 0], [1, 1, 0], [-1, 0, 1]])},
            r'classes \[0\] of 3 are present, or absent',
        ),
        ({'labels': np.full((4, 3), 2)}, r'-1 \(ignored\)'),
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
