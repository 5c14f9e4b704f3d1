"""The training step is one function, whatever the number of devices: values, statistics, state, communication.

In float64, where eight devices must equal one to 1e-9. In float32 the train-mode gradients of a ResNet on a small batch
carry rounding errors of some percent, which would hide a real difference.
"""

import re

import flax.traverse_util
import jax
import numpy as np
import pytest

from simclr_jax import sharding
from simclr_jax.build import make_task
from simclr_jax.training import optim
from simclr_jax.training.schedule import warmup_cosine
from simclr_jax.training.step import init_state, make_train_step
from support.steps import (
    CLASSES,
    IMAGES,
    RELATIVE,
    SIZE,
    VIEWS,
    assert_same,
    random_batch,
    small_config,
    traces_of,
)

STEPS = 3


class Run:
    """States and metrics of a few steps from the same start on so many devices."""

    def __init__(self, num_devices, start=None):
        self.mesh = sharding.make_mesh(jax.devices()[:num_devices])
        self.task = make_task(small_config(), CLASSES, self.mesh)
        self.tx = optim.make_optimizer('lars', warmup_cosine(0.5, 10, 0), weight_decay=1e-4)
        self.key = jax.random.key(0)
        self.start = start
        step = make_train_step(self.task, self.tx, self.mesh)
        self.step = step.lower(self.fresh_state(), self.batch(0), self.key).compile()
        self.text = self.step.as_text()
        state, self.metrics = self.fresh_state(), []
        for number in range(STEPS):
            state, metrics = self.step(state, self.batch(number), self.key)
            self.metrics.append(jax.device_get(metrics))
        self.state = jax.device_get(state)

    def fresh_state(self):
        if self.start is None:
            state = jax.device_get(init_state(self.task, self.tx, jax.random.key(1), self.mesh))
            self.start = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, state)
        return jax.device_put(self.start, sharding.replicated(self.mesh), may_alias=False)

    def batch(self, number):
        return sharding.to_global(random_batch(number), self.mesh)


@pytest.fixture(scope='module')
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope='module')
def one_device(double_precision):
    return Run(1)


@pytest.fixture(scope='module')
def eight_devices(one_device):
    return Run(8, one_device.start)


@pytest.mark.parametrize('name', ['loss', 'contrast_loss', 'alignment', 'uniformity', 'z_std', 'probe_loss'])
def test_eight_devices_have_the_losses_of_one(one_device, eight_devices, name):
    found, expected = ([row[name] for row in run.metrics] for run in (eight_devices, one_device))
    np.testing.assert_allclose(found, expected, rtol=RELATIVE)


def test_eight_devices_have_the_gradients_of_one(one_device, eight_devices):
    norms = [[row['gradient_norm'] for row in run.metrics] for run in (eight_devices, one_device)]
    np.testing.assert_allclose(*norms, rtol=RELATIVE)
    # LARS' momentum is the sum of the scaled gradients of all steps.
    for found, expected in zip(*(traces_of(run.state.opt_state) for run in (eight_devices, one_device)), strict=True):
        assert_same(found, expected, RELATIVE)


def test_eight_devices_end_in_the_state_of_one(one_device, eight_devices):
    assert_same(eight_devices.state.batch_stats, one_device.state.batch_stats, RELATIVE)
    assert_same(eight_devices.state.params, one_device.state.params, RELATIVE)


def test_every_parameter_and_statistic_moves(one_device):
    start, end = one_device.start, one_device.state
    for before, after in ((start.params, end.params), (start.batch_stats, end.batch_stats)):
        before, after = (flax.traverse_util.flatten_dict(tree) for tree in (before, after))
        still = [name for name in before if np.array_equal(before[name], after[name])]
        assert not still


def test_the_same_inputs_give_the_same_bits(one_device):
    _, again = one_device.step(one_device.fresh_state(), one_device.batch(0), one_device.key)
    again, first = jax.device_get(again), one_device.metrics[0]
    assert {name: again[name].tobytes() for name in again} == {name: first[name].tobytes() for name in first}


def test_views_stay_where_they_are(eight_devices):
    """Views are neighbours of their image: nothing is exchanged but sums and the projections' gather."""
    text = eight_devices.text
    collectives = set(re.findall(r'= \S+ ((?:all|collective|reduce-scatter)[a-z-]*?)(?:-start|-done)?\(', text))
    assert 'all-gather' in collectives
    assert 'all-to-all' not in text
    assert 'collective-permute' not in text
    assert collectives <= {'all-gather', 'all-reduce', 'reduce-scatter'}


def test_only_the_projections_are_gathered(eight_devices):
    gathered = re.findall(r'= f64\[([\d,]+)\]\S* all-gather\(', eight_devices.text)
    assert gathered
    for shape in gathered:
        assert np.prod([int(n) for n in shape.split(',')]) <= IMAGES * VIEWS * 128


def test_the_loss_has_the_negatives_of_all_devices(eight_devices):
    """Against NumPy in float64 on the whole batch's projections."""
    run = eight_devices
    images = random_batch(0)['views'].reshape(-1, SIZE, SIZE, 3)
    variables = {'params': run.start.params, 'batch_stats': run.start.batch_stats}
    outputs, _ = run.task.model.apply(variables, images, train=True, mutable=['batch_stats'])
    z = np.asarray(outputs['projection'])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    similarity = z @ z.T / small_config().loss.temperature
    np.fill_diagonal(similarity, -np.inf)
    anchor = np.arange(len(z))
    expected = np.mean(np.log(np.exp(similarity).sum(1)) - similarity[anchor, anchor ^ 1])
    np.testing.assert_allclose(run.metrics[0]['contrast_loss'], expected, rtol=RELATIVE)


@pytest.mark.parametrize('num_devices, cure', [(24, '4080, 4104'), (8, None), (3000, '3000, 6000')])
def test_batch_that_does_not_divide(num_devices, cure):
    problems = sharding.check_batch_size(4096, num_devices)
    assert [cure in problem for problem in problems] == ([True] if cure else [])
