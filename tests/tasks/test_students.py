"""Students of a teacher and of a momentum encoder: on any number of devices, with teachers that stay as they are."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from simclr_jax import sharding
from simclr_jax.build import make_loss, make_memory, make_task
from simclr_jax.losses.contrastive import info_nce
from simclr_jax.networks import Teacher
from simclr_jax.sharding import DATA_AXIS
from simclr_jax.tasks.memory import KEY_ENCODER, QUEUE, TEACHER
from simclr_jax.training import optim
from simclr_jax.training.schedule import warmup_cosine
from simclr_jax.training.state import TrainState
from simclr_jax.training.step import abstract_state, init_state, make_train_step, state_shardings, with_constant
from support.runs import assert_same_bits
from support.steps import CLASSES, IMAGES, RELATIVE, assert_same, random_batch, small_config

STEPS, MOMENTUM = 3, 0.75


@pytest.fixture(scope='module', autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def student_config(task):
    config = small_config()
    config.task = task
    config.head.out_dim = 8
    if task == 'distill':
        config.head.kind = 'none'
        config.augment.views = ('crop flip',)
        config.distill.temperature = 0.5
    else:
        config.head.batch_norm = False
        config.head.hidden_dim = 12
        config.loss.name = 'info_nce'
        config.loss.queue_size = 2 * IMAGES
        config.loss.momentum = MOMENTUM
    return config


@functools.cache
def teacher_of(task):
    """A teacher of another width than the student, and random variables of it in float64."""
    config = small_config()
    config.model.width, config.head.out_dim = 0.25, 8
    teacher = Teacher(config, CLASSES)
    random = np.random.default_rng(5)

    def draw(path, leaf):
        noise = random.standard_normal(leaf.shape)
        is_near_one = path[-1].key in ('scale', 'var')
        return 1 + 0.1 * noise if is_near_one else noise / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))

    return teacher, jax.tree.map_with_path(draw, teacher.shapes(task))


class Steps:
    """A few steps of a student on so many devices."""

    def __init__(self, task, devices, *, layout='replicated', microbatches=1, start=None):
        self.config, self.mesh = student_config(task), sharding.make_mesh(jax.devices()[:devices])
        teacher, self.variables = teacher_of(task)
        tx = optim.make_optimizer('momentum', warmup_cosine(0.1, 10, 0), weight_decay=1e-4)
        memory = make_memory(self.config, self.mesh)
        learnt = make_task(self.config, CLASSES, self.mesh, teacher=teacher)
        shapes = abstract_state(learnt, tx, memory, {TEACHER: teacher.shapes(task)})
        shardings = state_shardings(shapes, self.mesh, layout)
        if start is None:
            drawn = jax.device_get(init_state(learnt, tx, jax.random.key(1), self.mesh, memory=memory))
            start = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, drawn)
        self.start, self.shardings = start, shardings
        self.step = make_train_step(
            learnt, tx, self.mesh, shardings=shardings, microbatches=microbatches, memory=memory
        )

    def run(self, batches) -> tuple[list[TrainState], list[dict]]:
        """The states after each step, and the metrics."""
        state = with_constant(self.start, {TEACHER: self.variables})
        state = jax.device_put(state, self.shardings, may_alias=False)
        states, rows = [], []
        for batch in batches:
            state, metrics = self.step(state, sharding.to_global(batch, self.mesh), jax.random.key(0))
            states.append(jax.device_get(state))
            rows.append(jax.device_get(metrics))
        return states, rows


def batches_of(task):
    views = len(student_config(task).augment.views)
    return [random_batch(number, views=views) for number in range(STEPS)]


@dataclasses.dataclass
class Ran:
    steps: Steps
    states: list
    rows: list


@functools.cache
def ran(task):
    steps = Steps(task, 1)
    return Ran(steps, *steps.run(batches_of(task)))


@pytest.mark.parametrize('task, layout', [('disco', 'fsdp'), ('distill', 'replicated')])
def test_eight_devices_train_the_student_of_one(task, layout):
    one = ran(task)
    states, rows = Steps(task, 8, layout=layout, start=one.steps.start).run(batches_of(task))
    for found, expected in zip(states, one.states, strict=True):
        assert_same(found.params, expected.params, RELATIVE)
        assert_same(found.batch_stats, expected.batch_stats, RELATIVE)
        assert_same(found.frozen.updated, expected.frozen.updated, RELATIVE)
    for found, expected in zip(rows, one.rows, strict=True):
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=RELATIVE, atol=RELATIVE, err_msg=name)


@pytest.mark.parametrize('task', ['disco', 'distill'])
def test_a_teacher_does_not_change_by_a_bit(task):
    run = ran(task)
    assert_same_bits(run.states[-1].frozen.constant[TEACHER], run.steps.variables)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), run.states[-1].params, run.steps.start.params)
    assert all(jax.tree.leaves(moved['encoder']))


def test_a_distillation_with_alpha_1_reads_no_labels():
    run = ran('distill')
    without = [{**batch, 'label': np.full_like(batch['label'], -1)} for batch in batches_of('distill')]
    states, rows = run.steps.run(without)
    assert np.isnan([rows[-1][name] for name in ('accuracy', 'teacher_accuracy')]).all()
    assert np.isfinite([run.rows[-1][name] for name in ('accuracy', 'teacher_accuracy')]).all()
    assert_same_bits((states[-1].params, states[-1].batch_stats), (run.states[-1].params, run.states[-1].batch_stats))


def test_keys_enter_the_queue_and_the_key_encoder_follows():
    run = ran('disco')
    first, second, third = (state.frozen.updated for state in run.states)
    start = run.steps.start
    # Before the first step, query and key encoder are equal.
    assert_same_bits(first[KEY_ENCODER]['params']['encoder'], start.params['encoder'])
    expected = jax.tree.map(
        lambda key, query: MOMENTUM * key + (1 - MOMENTUM) * query,
        first[KEY_ENCODER]['params'],
        {part: run.states[0].params[part] for part in ('encoder', 'head')},
    )
    assert_same(second[KEY_ENCODER]['params'], expected, RELATIVE)
    assert [int(parts[QUEUE]['next']) for parts in (first, second, third)] == [IMAGES, 0, IMAGES]
    np.testing.assert_array_equal(second[QUEUE]['rows'][:IMAGES], first[QUEUE]['rows'][:IMAGES])
    np.testing.assert_array_equal(first[QUEUE]['rows'][IMAGES:], start.frozen.updated[QUEUE]['rows'][IMAGES:])
    for parts in (second, third):
        np.testing.assert_allclose(np.linalg.norm(parts[QUEUE]['rows'], axis=1), 1, rtol=1e-9)


@pytest.mark.parametrize('seen', [2, 3])
def test_every_view_but_that_of_the_keys_is_a_query(seen):
    """Of three views the student of DisCo sees all, and other students the first two."""
    config = student_config('disco')
    config.augment.views = 3 * ('crop flip',)
    z, keys, queue = (
        jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate([(4, 3, 5), (4, 5), (6, 5)])
    )
    queue = queue / jnp.linalg.norm(queue, axis=1, keepdims=True)
    rows, everywhere = PartitionSpec(DATA_AXIS), PartitionSpec()
    mesh = sharding.make_mesh(jax.devices()[:1])
    loss = jax.shard_map(make_loss(config), mesh=mesh, in_specs=(rows, rows, everywhere), out_specs=everywhere)
    expected, _ = info_nce(z[:, :2], keys, queue, temperature=config.loss.temperature)
    np.testing.assert_allclose(jax.jit(loss)(z[:, :seen], keys, queue)[0], expected, rtol=1e-12)


def test_microbatches_with_the_statistics_of_the_batch_make_the_same_keys():
    """Each half of the batch holds the same images, so that it has the statistics of the whole."""
    half = random_batch(0, images=IMAGES // 2)
    batch = {**jax.tree.map(lambda rows: np.concatenate([rows, rows]), half), 'index': np.arange(IMAGES)}
    run = ran('disco')
    whole, _ = run.steps.run([batch])
    parts, _ = Steps('disco', 1, microbatches=2, start=run.steps.start).run([batch])
    assert_same(parts[0].params, whole[0].params, RELATIVE)
    assert_same(parts[0].frozen.updated, whole[0].frozen.updated, RELATIVE)
