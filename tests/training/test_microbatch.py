"""A batch that goes through the network in parts has the loss and the gradients of the whole one.

In float64, where equal and similar can be told apart. Float32 gradients in train mode carry errors of some percent.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simclr_jax import sharding
from simclr_jax.build import make_task
from simclr_jax.tasks.simclr import Pretrain
from simclr_jax.tasks.views import by_image, images_of
from simclr_jax.training.step import init_state, make_train_step
from support.steps import CLASSES, IMAGES, RELATIVE, assert_same, random_batch, small_config, traces_of

NUM_DEVICES, MICROBATCHES = 2, 4


@dataclasses.dataclass(frozen=True)
class FixedStatistics(Pretrain):
    """The pretraining with batch norms in inference mode: every image for itself, until the loss."""

    def outputs(self, variables, batch, key):
        outputs = self.model.apply(variables, images_of(batch, self.mesh), train=False)
        return {name: by_image(outputs[name], batch) for name in ('projection', 'logits')}, {
            'batch_stats': variables['batch_stats']
        }


class Start:
    """A task on two devices and its state in float64, with an optimiser whose momentum is the gradient."""

    def __init__(self, kind):
        self.mesh = sharding.make_mesh(jax.devices()[:NUM_DEVICES])
        task = make_task(small_config(), CLASSES, self.mesh)
        self.task = kind(**{field.name: getattr(task, field.name) for field in dataclasses.fields(task)})
        self.tx = optax.trace(decay=0.0)
        state = jax.device_get(init_state(self.task, self.tx, jax.random.key(1), self.mesh))
        state = jax.tree.map(lambda x: np.float64(x) if x.dtype == np.float32 else x, state)
        random = np.random.default_rng(0)
        # Away from zero: the last scale of each block starts there, and would stop all gradients into the block.
        self.state = state.replace(params=jax.tree.map(lambda x: x + 0.1 * random.normal(size=x.shape), state.params))

    def run(self, batch, microbatches):
        step = make_train_step(self.task, self.tx, self.mesh, microbatches=microbatches)
        state = jax.device_put(self.state, sharding.replicated(self.mesh), may_alias=False)
        state, metrics = step(state, sharding.to_global(batch, self.mesh), jax.random.key(0))
        return jax.device_get(state), jax.device_get(metrics)


@pytest.fixture(scope='module')
def double_precision():
    with jax.enable_x64(True):
        yield


def assert_equal(found, expected, relative=RELATIVE):
    (found_state, found_metrics), (state, metrics) = found, expected
    assert found_metrics.keys() == metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(found_metrics[name], value, rtol=relative, atol=relative, err_msg=name)
    (gradients,), (found_gradients,) = (traces_of(part.opt_state) for part in (state, found_state))
    assert_same(found_gradients, gradients, relative)
    assert_same(found_state.batch_stats, state.batch_stats, relative)


def test_with_fixed_statistics_it_is_the_whole_batch(double_precision):
    start = Start(FixedStatistics)
    batch = random_batch(0)
    batch['mask'][3] = 0
    whole = start.run(batch, 1)
    assert np.abs(traces_of(whole[0].opt_state)[0]['encoder']['stem']['conv']['kernel']).max() > 1e-6
    assert_equal(start.run(batch, MICROBATCHES), whole)


@pytest.mark.slow
def test_with_equal_statistics_in_every_part_it_is_the_whole_batch(double_precision):
    """Every device's rows are a few images over and over, so that each microbatch holds the same ones."""
    start = Start(Pretrain)
    some = random_batch(0, images=IMAGES // MICROBATCHES)
    own = IMAGES // MICROBATCHES // NUM_DEVICES
    rows = np.concatenate([np.tile(np.arange(n * own, (n + 1) * own), MICROBATCHES) for n in range(NUM_DEVICES)])
    batch = {name: values[rows] for name, values in some.items()}
    assert_equal(start.run(batch, MICROBATCHES), start.run(batch, 1), 1e-8)


def test_moving_statistics_move_by_the_mean_of_the_parts(double_precision):
    start = Start(Pretrain)
    batch = random_batch(0)
    (state, _) = start.run(batch, MICROBATCHES)
    variables = {'params': start.state.params, 'batch_stats': start.state.batch_stats}
    # Of each device's eight images the first two are in the first part, and so on.
    own = IMAGES // NUM_DEVICES
    parts = np.arange(IMAGES).reshape(NUM_DEVICES, MICROBATCHES, -1).swapaxes(0, 1).reshape(MICROBATCHES, -1)
    assert parts[0].tolist() == [0, 1, own, own + 1]
    forward = jax.jit(functools.partial(start.task.model.apply, train=True, mutable=['batch_stats']))
    moved = [
        forward(variables, batch['views'][rows].reshape(-1, *batch['views'].shape[2:]))[1]['batch_stats']
        for rows in parts
    ]
    assert_same(state.batch_stats, jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *moved), RELATIVE)


@pytest.mark.slow
def test_memory_falls_with_the_microbatch():
    """Of the compiled program, with the global batch as it is."""
    start = Start(Pretrain)
    batch = sharding.to_global(random_batch(0, images=64), start.mesh)
    state = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, start.state))

    def temporaries(microbatches):
        step = make_train_step(start.task, start.tx, start.mesh, microbatches=microbatches)
        return step.lower(state, batch, jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8) < 0.5 * temporaries(1)
