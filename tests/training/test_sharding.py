"""Parameters and optimiser divided among the devices (fsdp): the same training, less memory on each."""

import jax
import numpy as np
import pytest

from simclr_jax import sharding
from simclr_jax.build import make_task
from simclr_jax.training import optim
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.schedule import warmup_cosine
from simclr_jax.training.step import init_state, make_train_step, state_shardings
from support.steps import CLASSES, RELATIVE, assert_same, random_batch, small_config

STEPS = 3
# Of this model a third is in parameters too small to be divided; the rest lies on each device by an eighth.
LARGEST_SHARE = 0.25


class Run:
    """A few steps on eight devices in float64, from what this run has drawn or from the start of another one."""

    def __init__(self, layout, microbatches=1, start=None):
        self.mesh = sharding.make_mesh()
        config = small_config()
        config.model.width = 0.5
        self.task = make_task(config, CLASSES, self.mesh)
        self.tx = optim.make_optimizer('lars', warmup_cosine(0.5, 10, 0), weight_decay=1e-4)
        self.shardings = state_shardings(self.task, self.tx, self.mesh, layout)
        self.drawn = init_state(self.task, self.tx, jax.random.key(1), self.mesh, self.shardings)
        self.start = start or jax.tree.map(
            lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, jax.device_get(self.drawn)
        )
        state = jax.device_put(self.start, self.shardings, may_alias=False)
        step = make_train_step(self.task, self.tx, self.mesh, shardings=self.shardings, microbatches=microbatches)
        self.metrics = []
        for number in range(STEPS):
            batch = sharding.to_global(random_batch(number), self.mesh)
            state, metrics = step(state, batch, jax.random.key(0))
            self.metrics.append(jax.device_get(metrics))
        self.state = state


@pytest.fixture(scope='module')
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope='module')
def replicated(double_precision):
    return Run('replicated')


@pytest.fixture(scope='module')
def fsdp(replicated):
    return Run('fsdp', start=replicated.start)


def bytes_of(state):
    """On the first device, and all together without copies."""
    leaves = jax.tree.leaves(state)
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves), sum(leaf.nbytes for leaf in leaves)


def assert_same_training(found, expected):
    for row, expected_row in zip(found.metrics, expected.metrics, strict=True):
        for name, value in expected_row.items():
            np.testing.assert_allclose(row[name], value, rtol=RELATIVE, atol=RELATIVE, err_msg=name)
    state, expected_state = jax.device_get((found.state, expected.state))
    assert_same(state.params, expected_state.params, RELATIVE)
    assert_same(state.batch_stats, expected_state.batch_stats, RELATIVE)


def test_the_start_is_the_same(fsdp, replicated):
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((fsdp.drawn, replicated.drawn)))


def test_training_is_the_same(fsdp, replicated):
    assert_same_training(fsdp, replicated)


def test_each_device_holds_a_share(fsdp, replicated):
    own, whole = bytes_of(replicated.state)
    assert own == whole
    own, whole = bytes_of(fsdp.state)
    assert own < LARGEST_SHARE * whole


def test_largest_dimension_that_divides_is_divided():
    mesh = sharding.make_mesh()
    specs = {shape: sharding.divided(mesh, shape).spec for shape in ((3, 3, 64, 128), (3, 3, 130, 64), (7, 7, 3, 99))}
    assert [tuple(spec).index('data') for spec in list(specs.values())[:2]] == [3, 3]
    assert sharding.divided(mesh, (7, 7, 3, 99)).is_fully_replicated
    assert sharding.divided(mesh, (64,)).is_fully_replicated


def test_its_checkpoint_is_read_by_other_devices_whole(fsdp, tmp_path):
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


def test_one_written_whole_is_read_divided(replicated, fsdp, tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(replicated.state)
    found = checkpoints.restore(fsdp.state)
    checkpoints.close()
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, fsdp.state)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(replicated.state))


@pytest.mark.slow
def test_with_microbatches_too(double_precision, fsdp):
    run = Run('fsdp', microbatches=2, start=fsdp.start)
    assert jax.tree.map(lambda x: x.sharding, run.state) == jax.tree.map(lambda x: x.sharding, fsdp.state)
    assert_same_training(run, Run('replicated', microbatches=2, start=fsdp.start))
