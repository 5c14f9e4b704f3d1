"""The losses against the reference's numbers, loops in float64, and themselves on several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.losses.contrastive import margin_triplet, nt_logistic, nt_xent
from simclr_jax.losses.supervised import accuracy, softmax_cross_entropy
from support.losses import loss_by_loops, on_devices, random_views, value_and_gradient

SINGLE = [f'case{number:02d}' for number in range(48)] + ['case_zero_row']
MULTI = ['multi_R2_b4_D16_norm', 'multi_R2_b4_D16_raw', 'multi_R4_b3_D8_norm', 'multi_R4_b3_D8_raw']
# Half a float32 step at 1: the reference rounds 1 + x, and p - 1 where the probability p is close to 1.
ROUNDING_OF_ONE = 2.0**-24

LOSSES = {
    'nt_xent': functools.partial(nt_xent, temperature=0.5),
    'nt_logistic': functools.partial(nt_logistic, temperature=0.5),
    'nt_logistic_semi_hard': functools.partial(nt_logistic, temperature=0.5, semi_hard=True),
    'margin_triplet': functools.partial(margin_triplet, margin=0.4),
    'margin_triplet_semi_hard': functools.partial(margin_triplet, margin=0.4, semi_hard=True),
}
each_loss = pytest.mark.parametrize('name', LOSSES)


@functools.cache
def xent_with_gradient(normalize):
    """One compilation for each shape: the temperature is an argument."""
    return value_and_gradient(lambda z, t: nt_xent(z, temperature=t, normalize=normalize))


def to_views(hidden):
    """[all first views; all second views] -> [B, 2, D]."""
    return np.stack(np.split(hidden, 2), axis=1)


def from_views(z):
    return np.concatenate([z[:, 0], z[:, 1]])


@pytest.mark.parametrize('case', SINGLE)
def test_nt_xent_is_half_the_reference(oracle, case):
    numbers = oracle('nt_xent')
    info = next(entry for entry in numbers.info if entry['case'] == case)
    z = to_views(numbers[info['hidden']])
    (loss, metrics), gradient = xent_with_gradient(info['hidden_norm'])(z, info['temperature'])

    # The reference adds the two directions' means.
    np.testing.assert_allclose(2 * loss, numbers[f'{case}/loss'], rtol=1e-5, atol=2 * ROUNDING_OF_ONE)
    np.testing.assert_allclose(metrics['contrast_accuracy'], numbers[f'{case}/contrast_acc'], rtol=1e-6)
    np.testing.assert_allclose(metrics['contrast_entropy'], numbers[f'{case}/contrast_entropy'], rtol=1e-5)
    expected = numbers[f'{case}/grad']
    rounding = ROUNDING_OF_ONE / (info['temperature'] * info['batch'])
    # Relative to the largest entry, since the entries of a gradient cancel.
    np.testing.assert_allclose(
        numbers.pick(f'{case}/grad', 2 * from_views(gradient)),
        expected,
        rtol=0,
        atol=1e-5 * np.abs(expected).max() + rounding,
    )


def test_gradient_beside_a_row_of_zeros(oracle):
    """A row of zeros has a gradient of order 1e6, which must not hide the others: compared row by row."""
    numbers = oracle('nt_xent')
    _, gradient = xent_with_gradient(True)(to_views(numbers['hidden_zero_row']), 0.1)
    expected = numbers['case_zero_row/grad']
    scale = np.abs(expected).max(axis=1, keepdims=True)
    assert scale.max() > 1e5
    np.testing.assert_allclose(2 * from_views(gradient) / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize('case', MULTI)
def test_nt_xent_on_several_replicas_is_half_the_reference(oracle, case):
    numbers = oracle('nt_xent')
    info = next(entry for entry in numbers.info if entry['case'] == case)
    z = np.concatenate([to_views(block) for block in numbers[f'{case}/hidden']])
    loss = functools.partial(nt_xent, temperature=info['temperature'], normalize=info['hidden_norm'])
    (value, metrics), gradient = value_and_gradient(on_devices(loss, info['replicas']))(z)

    np.testing.assert_allclose(2 * value, numbers[f'{case}/global_loss'], rtol=1e-5)
    np.testing.assert_allclose(metrics['contrast_accuracy'], numbers[f'{case}/contrast_acc'], rtol=1e-6)
    np.testing.assert_allclose(metrics['contrast_entropy'], numbers[f'{case}/contrast_entropy'], rtol=1e-5)
    expected = numbers[f'{case}/grad']
    blocks = np.split(np.asarray(gradient), info['replicas'])
    actual = numbers.pick(f'{case}/grad', 2 * np.stack([from_views(block) for block in blocks]))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@each_loss
def test_eight_devices_equal_one(name):
    z = random_views(16, 2, 8)
    (loss, metrics), gradient = value_and_gradient(LOSSES[name])(z)
    (split_loss, split_metrics), split_gradient = value_and_gradient(on_devices(LOSSES[name], 8))(z)
    # Only the order of float32 sums differs.
    np.testing.assert_allclose(split_loss, loss, rtol=1e-6)
    np.testing.assert_allclose(split_gradient, gradient, rtol=0, atol=1e-6 * np.abs(gradient).max())
    assert split_metrics.keys() == metrics.keys() == {'contrast_accuracy', 'contrast_entropy'}
    for key in metrics:
        np.testing.assert_allclose(split_metrics[key], metrics[key], rtol=1e-6)


@each_loss
@pytest.mark.parametrize('views', [2, 3])
@pytest.mark.parametrize('normalize', [True, False])
def test_losses_equal_their_formulas(x64, name, views, normalize):
    z = random_views(5, views, 4).astype(np.float64)
    loss, _ = jax.jit(functools.partial(LOSSES[name], normalize=normalize))(z)
    assert loss.dtype == np.float64
    np.testing.assert_allclose(loss, loss_by_loops(name, z, normalize), rtol=1e-12)


@each_loss
def test_gradients_equal_finite_differences(x64, name):
    """Masks, missing semi-hard negatives and hinges leave no NaN and no missing path in the gradient."""
    z = jnp.asarray(random_views(5, 3, 4), jnp.float64)
    direction = jnp.asarray(random_views(5, 3, 4, seed=1), jnp.float64)
    loss = jax.jit(lambda z: LOSSES[name](z)[0])
    step = 1e-6
    slope = (loss(z + step * direction) - loss(z - step * direction)) / (2 * step)
    # Central differences at this step are good to about 1e-9.
    np.testing.assert_allclose(np.vdot(jax.jit(jax.grad(loss))(z), direction), slope, rtol=1e-6)


@pytest.mark.parametrize('name', ['nt_logistic_semi_hard', 'margin_triplet_semi_hard'])
def test_pairs_without_a_semi_hard_negative(name):
    """Every negative is closer than the positive: no negative term, and a finite gradient."""
    z = np.array([[[1, 0], [-1, 0]], [[1, 0.1], [-1, 0.1]]], np.float32)
    z[:, 1, 1] += [0.3, -0.3]
    similarity = z.reshape(4, 2) @ z.reshape(4, 2).T
    positives = similarity[[0, 1, 2, 3], [1, 0, 3, 2]]
    far = np.array([similarity[i, [k for k in range(4) if k // 2 != i // 2]].min() for i in range(4)])
    without = far >= positives
    assert without.any()
    loss = functools.partial(LOSSES[name], normalize=False)
    (value, _), gradient = value_and_gradient(loss)(z)
    np.testing.assert_allclose(value, loss_by_loops(name, z.astype(np.float64), False), rtol=1e-6)
    assert np.isfinite(gradient).all()


@each_loss
def test_neither_order_of_images_nor_length_nor_rotation_matters(name):
    z = random_views(6, 2, 5)
    loss = jax.jit(lambda z: LOSSES[name](z)[0])
    expected = loss(z)
    generator = np.random.default_rng(2)
    lengths = generator.uniform(0.1, 10, (6, 2, 1)).astype(np.float32)
    rotation = np.linalg.qr(generator.standard_normal((5, 5)))[0].astype(np.float32)
    for changed in (z[generator.permutation(6)], z[:, ::-1], z * lengths, z @ rotation):
        np.testing.assert_allclose(loss(changed), expected, rtol=1e-5)


def test_collapse_costs_the_logarithm_of_the_candidates():
    (loss, metrics), _ = xent_with_gradient(True)(jnp.ones((8, 2, 3)), 0.1)
    np.testing.assert_allclose(loss, np.log(15), rtol=1e-6)
    np.testing.assert_allclose(metrics['contrast_entropy'], np.log(8), rtol=1e-6)


def test_perfect_views_leave_the_negatives_alone():
    """Orthonormal images: l = log(1 + 2 (N - 1) exp(-1 / T)) is tiny, and not lost in rounding."""
    z = jnp.repeat(jnp.eye(4)[:, None], 2, axis=1)
    (loss, metrics), _ = xent_with_gradient(True)(z, 0.05)
    np.testing.assert_allclose(loss, 6 * np.exp(-20.0), rtol=1e-5)
    assert metrics['contrast_accuracy'] == 1


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype):
    z = jnp.asarray(random_views(4, 2, 8)).astype(dtype)
    (loss, metrics), gradient = xent_with_gradient(True)(z, 0.1)
    (expected, _), _ = xent_with_gradient(True)(z.astype(jnp.float32), 0.1)
    assert loss.dtype == metrics['contrast_entropy'].dtype == jnp.float32
    assert gradient.dtype == dtype
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize('shape', [(4, 8), (4, 1, 8), (1, 2, 8)])
def test_what_has_no_positives_or_no_negatives_is_refused(shape):
    with pytest.raises(ValueError, match='at least two'):
        nt_xent(jnp.ones(shape), temperature=0.1)


def test_supervised_means_leave_out_what_has_no_label_or_no_weight():
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((2, 4, 3)).astype(np.float32)
    labels = np.array([[0, 1, 2, -1], [2, -1, 1, 0]], np.int32)
    weights = np.array([[1, 0, 2, 1], [0.5, 1, 1, 0]], np.float32)
    log_probability = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    kept = np.where(labels < 0, 0, weights)
    cross_entropy = -np.take_along_axis(log_probability, labels.clip(0)[..., None], axis=-1)[..., 0]
    correct = logits.argmax(axis=-1) == labels

    np.testing.assert_allclose(
        softmax_cross_entropy(logits, labels, weights),
        np.average(cross_entropy, weights=kept),
        rtol=1e-6,
    )
    np.testing.assert_allclose(accuracy(logits, labels, weights), np.average(correct, weights=kept), rtol=1e-6)
    np.testing.assert_allclose(softmax_cross_entropy(logits, labels), cross_entropy[labels >= 0].mean(), rtol=1e-6)


def test_supervised_means_of_nothing_are_zero():
    logits, labels = jnp.ones((3, 2)), jnp.full(3, -1)
    value, gradient = jax.jit(jax.value_and_grad(softmax_cross_entropy))(logits, labels, jnp.ones(3))
    assert value == 0
    assert not gradient.any()
    assert accuracy(logits, labels) == 0
    assert softmax_cross_entropy(logits, jnp.zeros(3, jnp.int32), jnp.zeros(3)) == 0
