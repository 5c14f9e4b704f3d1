"""Linear classifiers on every feature map: five independent ones, on an encoder that stays as it is."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import sharding
from simclr_jax.losses.supervised import softmax_cross_entropy
from simclr_jax.models.classifier import FeatureMapClassifiers
from simclr_jax.models.resnet import ResNet
from simclr_jax.tasks.multihead import MultiHead
from simclr_jax.training import optim
from simclr_jax.training.schedule import step_decay
from simclr_jax.training.step import make_train_step
from support.finetuning import ENCODER, SIZE, flat, loss_of, start_from, trained_variables

FEATURES = ['feature1', 'feature2', 'feature3', 'feature4', 'feature5']
IMAGES, CLASSES, STEPS = 32, 4, 60


def quadrants(seed):
    """Noise with one bright quadrant, which tells the class."""
    rng = np.random.default_rng(seed)
    label = rng.integers(CLASSES, size=IMAGES).astype(np.int32)
    bright = np.eye(CLASSES)[label].reshape(IMAGES, 1, 2, 2, 1).repeat(SIZE // 2, 2).repeat(SIZE // 2, 3)
    views = 0.8 * bright + 0.2 * rng.uniform(size=(IMAGES, 1, SIZE, SIZE, 3))
    return {'views': views.astype(np.float32), 'label': label, 'mask': np.ones(IMAGES, np.float32)}


@pytest.fixture(scope='module')
def run():
    """The task, its state before and after some steps, and the metrics, on one device."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    task = MultiHead(FeatureMapClassifiers(ENCODER, CLASSES), SIZE, mesh)
    schedule = step_decay(0.01, milestones=(40, 50))
    tx = optim.freeze(optim.make_optimizer('momentum', schedule, weight_decay=1e-4), task.is_frozen)
    state = start_from(trained_variables(), task, tx, jax.random.key(0), mesh)
    start, metrics = jax.device_get(state), []
    step = make_train_step(task, tx, mesh)
    for number in range(STEPS):
        state, row = step(state, sharding.to_global(quadrants(number), mesh), jax.random.key(0))
        metrics.append(jax.device_get(row))
    return task, start, jax.device_get(state), metrics


def variables_of(state):
    return {'params': state.params, 'batch_stats': state.batch_stats}


def test_only_the_classifiers_learn(run):
    _, start, end, _ = run
    before, after = flat(variables_of(start)), flat(variables_of(end))
    moved = {path for path in before if before[path].tobytes() != after[path].tobytes()}
    assert moved == {path for path in before if path.split('/')[1] != 'encoder'}
    for path, value in flat(trained_variables()).items():
        if path.split('/')[1] == 'encoder':
            np.testing.assert_array_equal(after[path], value)


def test_parameters_are_one_linear_classifier_a_map(run):
    _, start, _, _ = run
    assert start.params.keys() == {'encoder', *FEATURES}
    # Maps of 8 x 8, 8 x 8, 4 x 4, 2 x 2 and 1 x 1 pixels with 4, 4, 8, 16 and 32 channels: nothing to pool.
    assert [start.params[name]['kernel'].shape for name in FEATURES] == [
        (values, CLASSES) for values in (256, 256, 128, 64, 32)
    ]


def test_every_classifier_learns(run):
    task, _, end, metrics = run
    assert metrics[0].keys() == {'loss', 'gradient_norm', *(f'{name}_accuracy' for name in FEATURES)}
    test = quadrants(1000)
    logits = jax.jit(task.predict)(variables_of(end), test['views'][:, 0])
    assert list(logits) == FEATURES
    for name in FEATURES:
        # Chance is 25 %, whose standard deviation over 32 images is 8 %.
        assert np.mean(logits[name].argmax(1) == test['label']) > 0.5
        assert metrics[-1][f'{name}_accuracy'] > 0.5


def test_the_loss_is_the_sum_and_the_classifiers_do_not_meet(run, x64):
    task, start, _, _ = run
    params, statistics = (jax.tree.map(np.float64, part) for part in (start.params, start.batch_stats))
    batch = quadrants(0) | {'views': np.float64(quadrants(0)['views'])}
    encoder, classifiers = params['encoder'], {name: params[name] for name in FEATURES}

    def separate(classifiers):
        variables = {'params': {'encoder': encoder, **classifiers}, 'batch_stats': statistics}
        logits, _ = task.model.apply(variables, batch['views'][:, 0], train=True, mutable=['batch_stats'])
        values = jnp.stack([softmax_cross_entropy(logits[name], batch['label']) for name in FEATURES])
        return values, values

    @jax.jit
    def both(classifiers):
        return jax.jacrev(separate, has_aux=True)(classifiers), loss_of(task, params, statistics, batch)

    (gradients, values), (total, _) = both(classifiers)
    np.testing.assert_allclose(total, values.sum(), rtol=1e-12)
    for number, name in enumerate(FEATURES):
        for gradient in gradients[name].values():
            assert gradient[number].any()
            assert not np.delete(gradient, number, axis=0).any()


def test_each_classifier_sees_its_normalised_map(run, x64):
    """In training mode: mean 0 and variance 1 of each channel over batch and places."""
    task, start, _, _ = run
    images = np.float64(quadrants(0)['views'][:, 0])
    variables = jax.tree.map(np.float64, variables_of(start))

    @jax.jit
    def forward(variables):
        encoder = {collection: parts['encoder'] for collection, parts in variables.items()}
        logits, _ = task.model.apply(variables, images, train=True, mutable=['batch_stats'])
        return logits, ENCODER.apply(encoder, images, train=False, maps=True)[1]

    logits, maps = jax.device_get(forward(variables))
    for name, part in zip(FEATURES, ENCODER.parts, strict=True):
        centred = maps[part] - maps[part].mean((0, 1, 2))
        normalised = centred / np.sqrt(np.square(centred).mean((0, 1, 2)) + 1e-5)
        expected = normalised.reshape(IMAGES, -1) @ variables['params'][name]['kernel']
        np.testing.assert_allclose(logits[name], expected, rtol=1e-9, atol=1e-12)


def test_resnet50_has_the_benchmarks_widths():
    model = FeatureMapClassifiers(ResNet(50, stem='imagenet'), 1000)
    images = jnp.zeros((2, 224, 224, 3))
    shapes = jax.eval_shape(lambda key: model.init(key, images, train=True), jax.random.key(0))['params']
    widths = {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(shapes, sep='/').items()}
    assert [widths[f'{name}/kernel'][0] for name in FEATURES] == [9216, 9216, 8192, 9216, 8192]
