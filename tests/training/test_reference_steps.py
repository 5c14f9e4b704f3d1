"""Four complete pretraining updates are the reference's: metrics, parameters, statistics and momentum.

The reference's float64 results are stored in float32. The step here is the program's own, in float64.
"""

import functools

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np
import pytest

from simclr_jax import sharding
from simclr_jax.build import make_task
from simclr_jax.config import base_config
from simclr_jax.training import optim
from simclr_jax.training.schedule import peak_learning_rate, total_steps, warmup_cosine, warmup_steps
from simclr_jax.training.state import TrainState
from simclr_jax.training.step import make_train_step
from support.reference_names import parameter_paths, reference_variables
from support.reference_networks import COMPILER_OPTIONS, convolution_as_product

# Rounding of the stored values, and of float64 sums in another order.
RELATIVE = 1e-6


@pytest.fixture(scope='module')
def trajectory(oracle):
    """Our states and metrics over the four steps, and the task."""
    oracle = oracle('train_steps_r18')
    with jax.enable_x64(True):
        yield oracle, *run_steps(oracle)


def run_steps(oracle):
    theirs = oracle.info['config']
    config = base_config()
    config.model.depth, config.data.image_size = 18, 32
    mesh = sharding.make_mesh(jax.devices()[:1])
    task = make_task(config, num_classes=10, mesh=mesh)
    batch_size, epochs = theirs['train_batch_size'], theirs['train_epochs']
    schedule = warmup_cosine(
        peak_learning_rate(theirs['learning_rate'], batch_size, theirs['learning_rate_scaling']),
        total_steps(theirs['num_examples'], epochs, batch_size),
        warmup_steps(theirs['num_examples'], theirs['warmup_epochs'], batch_size),
    )
    tx = optim.make_optimizer('lars', schedule, weight_decay=theirs['weight_decay'])
    shapes = dict(zip(oracle.info['variable_order'], variable_shapes(task, oracle.info['variable_order']), strict=True))
    variables = reference_variables([{'name': name, 'shape': shape} for name, shape in shapes.items()])
    variables = jax.tree.map(np.float64, variables)
    state = TrainState(np.int32(0), **variables, opt_state=jax.jit(tx.init)(variables['params']))
    # Where the step leaves it, so that it is compiled once.
    state = jax.device_put(state, sharding.replicated(mesh))
    step = jax.jit(make_train_step(task, tx, mesh), compiler_options=COMPILER_OPTIONS)

    states, metrics = [jax.tree.map(np.asarray, state)], []
    with nn.intercept_methods(convolution_as_product):
        for images, labels in zip(oracle['images_uint8'], oracle['labels'], strict=True):
            views = np.float64(np.float32(images) * np.float32(1 / 255))
            views = np.stack([views[..., :3], views[..., 3:]], axis=1)
            batch = {'views': views, 'label': labels, 'mask': np.ones(8), 'index': np.arange(8)}
            state, row = step(state, sharding.to_global(batch, mesh), jax.random.key(0))
            states.append(jax.tree.map(np.asarray, state))
            metrics.append(jax.device_get(row))
        final = jax.jit(functools.partial(task.model.apply, train=False))(
            {'params': state.params, 'batch_stats': state.batch_stats},
            np.concatenate([batch['views'][:, 0], batch['views'][:, 1]]),
        )
    rates = [float(schedule(step)) for step in range(4)]
    return states, metrics, jax.device_get(final), rates


def variable_shapes(task, names):
    shapes = flax.traverse_util.flatten_dict(jax.eval_shape(task.init, jax.random.key(0)))
    return [shapes[path].shape for path in parameter_paths(names).values()]


def in_order(state, names):
    flat = flax.traverse_util.flatten_dict({'params': state.params, 'batch_stats': state.batch_stats})
    return [flat[path] for path in parameter_paths(names).values()]


@pytest.mark.parametrize(
    'theirs, ours',
    [
        ('contrast_acc', lambda row: row['contrast_accuracy']),
        ('contrast_entropy', lambda row: row['contrast_entropy']),
        ('contrast_loss', lambda row: 2 * row['contrast_loss']),
        ('supervised_loss', lambda row: row['probe_loss']),
        ('supervised_acc', lambda row: row['probe_accuracy']),
    ],
)
def test_metrics(trajectory, theirs, ours):
    oracle, _, metrics, _, _ = trajectory
    found = [ours(row) for row in metrics]
    np.testing.assert_allclose(found, oracle[f'metrics/{theirs}'], rtol=RELATIVE)


def test_total_loss_is_contrast_and_probe(trajectory):
    oracle, _, metrics, _, _ = trajectory
    # Their total holds the decay term of the probe; ours leaves it to the optimiser.
    expected = oracle['metrics/total_loss'] - oracle['metrics/weight_decay']
    np.testing.assert_allclose([row['loss'] for row in metrics], expected, rtol=RELATIVE)


def test_learning_rates(trajectory):
    oracle, *_, rates = trajectory
    np.testing.assert_allclose(rates, oracle['metrics/learning_rate'], rtol=2e-7)


def test_parameters_and_statistics_after_each_update(trajectory):
    oracle, states, *_ = trajectory
    names = oracle.info['variable_order']
    for number, state in enumerate(states[1:]):
        values = in_order(state, names)
        norms = [np.linalg.norm(value) for value in values]
        np.testing.assert_allclose(norms, oracle['params_l2'][number], rtol=RELATIVE)
        for value, expected in zip(values, oracle['params_spread4'][number], strict=True):
            entries = value.reshape(-1)[(np.arange(4) * value.size) // 4]
            np.testing.assert_allclose(entries, expected, rtol=RELATIVE, atol=RELATIVE * np.abs(value).max())


def test_each_update_changes_each_variable_by_as_much(trajectory):
    oracle, states, *_ = trajectory
    names = oracle.info['variable_order']
    for number in range(4):
        before, after = in_order(states[number], names), in_order(states[number + 1], names)
        found = np.array([np.linalg.norm(b - a) for a, b in zip(before, after, strict=True)])
        expected = oracle['delta_l2'][number]
        # A difference of two values that were stored in float32 keeps their rounding.
        floor = 2**-24 * np.array([np.linalg.norm(value) for value in after])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=floor.max())


def test_momentum(trajectory):
    oracle, states, *_ = trajectory
    paths = parameter_paths(oracle.info['trainable_order'])
    traces = [s for s in jax.tree.leaves(states[-1].opt_state, is_leaf=is_trace) if is_trace(s)]
    momentum = flax.traverse_util.flatten_dict({'params': traces[0].trace})
    found = [np.linalg.norm(momentum[path]) for path in paths.values()]
    np.testing.assert_allclose(found, oracle['momentum_l2'], rtol=1e-5)


def is_trace(node):
    return hasattr(node, 'trace') and isinstance(node, tuple)


def test_model_after_the_last_update(trajectory):
    oracle, _, _, final, _ = trajectory
    for theirs, ours in (('proj_head_output', 'projection'), ('logits_sup', 'logits')):
        expected = oracle[f'final_eval/{theirs}']
        np.testing.assert_allclose(final[ours], expected, rtol=RELATIVE, atol=RELATIVE * np.abs(expected).max())
