"""The training step is one function, whatever the number of devices and wherever its state lies.

Values, statistics, state and communication on one device, on eight, and on eight that divide parameters and optimiser
among themselves (fsdp: the same training, less memory on each).

In float64, where eight devices must equal one to 1e-9. In float32 the train-mode gradients of a ResNet on a small batch
carry rounding errors of some percent, which would hide a real difference.
"""

import functools
import re

import flax.traverse_util
import jax
import numpy as np
import pytest

from simclr_jax import sharding
from simclr_jax.build import make_task
from simclr_jax.training import optim
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.schedule import warmup_cosine
from simclr_jax.training.step import abstract_state, init_state, make_train_step, state_shardings
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
# Of a model of this width a third is in parameters too small to be divided. The rest lies on each device by an eighth.
WIDTH, LARGEST_SHARE = 0.5, 0.25


class Run:
    """A few steps on so many devices, from what this run has drawn or from the start of another one."""

    def __init__(self, num_devices, layout='replicated', microbatches=1, start=None):
        self.mesh = sharding.make_mesh(jax.devices()[:num_devices])
        config = small_config()
        config.model.width = WIDTH
        self.task = make_task(config, CLASSES, self.mesh)
        self.tx = optim.make_optimizer('lars', warmup_cosine(0.5, 10, 0), weight_decay=1e-4)
        self.key = jax.random.key(0)
        self.shardings = state_shardings(abstract_state(self.task, self.tx), self.mesh, layout)
        self.start = start
        if start is None:
            drawn = jax.device_get(self.draw())
            self.start = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, drawn)
        step = make_train_step(self.task, self.tx, self.mesh, shardings=self.shardings, microbatches=microbatches)
        self.step = step.lower(self.fresh_state(), self.batch(0), self.key).compile()
        self.text = self.step.as_text()
        self.state, self.metrics = self.fresh_state(), []
        for number in range(STEPS):
            self.state, metrics = self.step(self.state, self.batch(number), self.key)
            self.metrics.append(jax.device_get(metrics))

    def draw(self):
        """The state that a training starts with, in float32."""
        return init_state(self.task, self.tx, jax.random.key(1), self.mesh, self.shardings)

    def fresh_state(self):
        return jax.device_put(self.start, self.shardings, may_alias=False)

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
    return Run(8, start=one_device.start)


@pytest.fixture(scope='module')
def fsdp(one_device):
    return Run(8, 'fsdp', start=one_device.start)


def assert_same_end(found, expected):
    found, expected = jax.device_get((found.state, expected.state))
    assert_same(found.params, expected.params, RELATIVE)
    assert_same(found.batch_stats, expected.batch_stats, RELATIVE)


@pytest.mark.parametrize('name', ['loss', 'contrast_loss', 'alignment', 'uniformity', 'z_std', 'probe_loss'])
def test_eight_devices_have_the_losses_of_one(one_device, eight_devices, name):
    found, expected = ([row[name] for row in run.metrics] for run in (eight_devices, one_device))
    np.testing.assert_allclose(found, expected, rtol=RELATIVE)


def test_eight_devices_have_the_gradients_of_one(one_device, eight_devices):
    norms = [[row['gradient_norm'] for row in run.metrics] for run in (eight_devices, one_device)]
    np.testing.assert_allclose(*norms, rtol=RELATIVE)
    # LARS' momentum is the sum of the scaled gradients of all steps.
    traces = [traces_of(jax.device_get(run.state.opt_state)) for run in (eight_devices, one_device)]
    for found, expected in zip(*traces, strict=True):
        assert_same(found, expected, RELATIVE)


def test_eight_devices_end_in_the_state_of_one(one_device, eight_devices):
    assert_same_end(eight_devices, one_device)


def test_every_parameter_and_statistic_moves(one_device):
    start, end = one_device.start, jax.device_get(one_device.state)
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
    forward = jax.jit(functools.partial(run.task.model.apply, train=True, mutable=['batch_stats']))
    outputs, _ = forward(variables, images)
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


# Divided among the devices.


def bytes_of(state):
    """On the first device, and all together without copies."""
    leaves = jax.tree.leaves(state)
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves), sum(leaf.nbytes for leaf in leaves)


def assert_same_training(found, expected):
    for row, expected_row in zip(found.metrics, expected.metrics, strict=True):
        for name, value in expected_row.items():
            np.testing.assert_allclose(row[name], value, rtol=RELATIVE, atol=RELATIVE, err_msg=name)
    assert_same_end(found, expected)


def test_the_start_is_the_same_divided(fsdp, one_device):
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((fsdp.draw(), one_device.draw())))


def test_training_is_the_same_divided(fsdp, eight_devices):
    assert_same_training(fsdp, eight_devices)


def test_each_device_holds_a_share(fsdp, eight_devices):
    own, whole = bytes_of(eight_devices.state)
    assert own == whole
    own, whole = bytes_of(fsdp.state)
    assert own < LARGEST_SHARE * whole


def test_largest_dimension_that_divides_is_divided():
    mesh = sharding.make_mesh()
    specs = {shape: sharding.divided(mesh, shape).spec for shape in ((3, 3, 64, 128), (3, 3, 130, 64), (7, 7, 3, 99))}
    assert [tuple(spec).index('data') for spec in list(specs.values())[:2]] == [3, 3]
    assert sharding.divided(mesh, (7, 7, 3, 99)).is_fully_replicated
    assert sharding.divided(mesh, (64,)).is_fully_replicated


def test_a_divided_checkpoint_is_read_by_other_devices_whole(fsdp, tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(fsdp.state)
    checkpoints.wait()
    checkpoints.close()
    expected = jax.device_get(fsdp.state)
    for mesh in (sharding.make_mesh(jax.devices()[:1]), sharding.make_mesh(jax.devices()[:2])):
        like = jax.device_put(expected, sharding.replicated(mesh))
        again = Checkpoints(str(tmp_path))
        found = again.restore(like)
        model, step = again.restore_model(mesh)
        again.close()
        assert step == STEPS
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(model['params']), expected.params)


def test_a_checkpoint_written_whole_is_read_divided(eight_devices, fsdp, tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(eight_devices.state)
    found = checkpoints.restore(fsdp.state)
    checkpoints.close()
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, fsdp.state)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(eight_devices.state))


@pytest.mark.slow
def test_divided_with_microbatches_too(double_precision, fsdp):
    run = Run(8, 'fsdp', microbatches=2, start=fsdp.start)
    assert jax.tree.map(lambda x: x.sharding, run.state) == jax.tree.map(lambda x: x.sharding, fsdp.state)
    assert_same_training(run, Run(8, microbatches=2, start=fsdp.start))
