"""Several steps at one order of the host are the steps one by one, whatever the lengths of the orders."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from simclr_jax import sharding
from simclr_jax.data.resident import ResidentBatches
from simclr_jax.training.schedule import Schedule
from simclr_jax.training.step import init_state, make_train_step, several_steps
from support.runs import assert_same_bits

MOST, BATCH = 5, 16


class Regression:
    """The smallest task: a linear map of noisy pixels to the label."""

    def init(self, key):
        return {'params': {'weights': jax.random.normal(key, (12,))}}

    def outputs(self, params, batch_stats, batch, key):
        pixels = batch['images'].reshape(len(batch['images']), -1).astype(jnp.float32) / 255
        return (pixels + jax.random.normal(key, pixels.shape)) @ params['weights'], batch_stats

    def loss(self, outputs, batch):
        errors = outputs - batch['label'].astype(jnp.float32) / 100
        return jnp.mean(errors**2), {'loss': jnp.mean(errors**2), 'errors': errors[:3]}


class Orders:
    """A regression on images in the devices' memory, in orders of given lengths from one step on."""

    def __init__(self, num_devices):
        self.mesh = sharding.make_mesh(jax.devices()[:num_devices])
        self.task, self.tx, self.key = Regression(), optax.sgd(0.1, momentum=0.9), jax.random.key(3)
        self.step = make_train_step(self.task, self.tx, self.mesh)
        self.several = several_steps(self.step, self.mesh)

    def fresh(self):
        return init_state(self.task, self.tx, jax.random.key(1), self.mesh)

    def batches(self, start_step=0, **several):
        images = np.random.default_rng(0).integers(0, 256, (203, 2, 2, 3)).astype(np.uint8)
        labels = np.arange(203, dtype=np.int32)
        order = {'batch_size': BATCH, 'seed': 3, 'start_step': start_step}
        return ResidentBatches(images, labels, self.mesh, **order, **several)

    def one_by_one(self, steps):
        state, found, batches = self.fresh(), [], self.batches()
        for _ in range(steps):
            state, metrics = self.step(state, next(batches), self.key)
            found.append(jax.device_get(metrics))
        return jax.device_get(state), jax.tree.map(lambda *rows: np.stack(rows), *found)

    def at_once(self, lengths, state=None):
        state, found = self.fresh() if state is None else state, []
        step = int(state.step)
        ends = {step + sum(lengths[:n]): length for n, length in enumerate(lengths)}
        batches = self.batches(step, most=MOST, steps_from=ends.__getitem__)
        for length in lengths:
            state, metrics = self.several(state, next(batches), self.key)
            assert all(not np.any(rows[length:]) for rows in jax.device_get(metrics).values())
            found.append(jax.tree.map(lambda rows, length=length: rows[:length], jax.device_get(metrics)))
        return state, jax.tree.map(lambda *rows: np.concatenate(rows), *found)


@pytest.fixture(scope='module', params=[1, 8])
def orders(request):
    return Orders(request.param)


def test_are_the_steps_one_by_one(orders):
    state, metrics = orders.at_once([5, 5, 5])
    expected, rows = orders.one_by_one(15)
    assert int(state.step) == 15
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), metrics, rows)
    np.testing.assert_allclose(state.params['weights'], expected.params['weights'], rtol=1e-5, atol=1e-6)


def test_lengths_and_resumption_leave_the_bits(orders):
    expected, rows = orders.at_once([5, 5, 5])
    whole, rows_of_other_lengths = orders.at_once([1, 4, 3, 3, 4])
    assert_same_bits(jax.device_get(whole), jax.device_get(expected))
    assert_same_bits(rows_of_other_lengths, rows)
    resumed, _ = orders.at_once([2, 5, 1], orders.at_once([5, 2])[0])
    assert_same_bits(jax.device_get(resumed), jax.device_get(expected))


def test_one_program_for_all_lengths(orders):
    orders.at_once([1, 4, 5])
    assert orders.several._cache_size() == 1


def test_orders_end_where_something_follows():
    schedule = Schedule(
        total_steps=23,
        epoch_steps=4.0,
        log_every=6,
        checkpoint_every=10,
        evaluate_every=9,
        learning_rate=lambda step: 0.5,
        steps_per_dispatch=MOST,
    )
    step, ends = 0, []
    while step < schedule.total_steps:
        step += schedule.steps_from(step)
        ends.append(step)
    assert ends == [5, 6, 9, 10, 12, 17, 18, 20, 23]
