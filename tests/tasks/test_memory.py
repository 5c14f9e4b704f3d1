"""Momentum encoder and queue through the training step, against three steps of PyTorch in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import sharding
from simclr_jax.losses.contrastive import info_nce
from simclr_jax.ops.similarities import l2_normalize
from simclr_jax.tasks.memory import KEY_ENCODER, QUEUE, MomentumMemory
from simclr_jax.training import optim
from simclr_jax.training.state import Frozen, TrainState
from simclr_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Linear:
    """A task with the linear encoder x W' + b and InfoNCE."""

    temperature: float

    def init(self, key):
        raise NotImplementedError

    def outputs(self, variables, batch, key):
        del key
        queries = self._encode(variables['params'], batch['query'])
        keys = self._encode(variables[KEY_ENCODER]['params'], batch['key'])
        return {'queries': queries[:, None], 'keys': keys}, {'batch_stats': {}, KEY_ENCODER: {}}

    def loss(self, outputs, batch, frozen):
        del batch
        queue = frozen[QUEUE]['rows']
        return info_nce(outputs['queries'], outputs['keys'], queue, temperature=self.temperature)

    def _encode(self, params, x):
        return l2_normalize(x @ params['encoder']['weight'].T + params['encoder']['bias'])


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('number', [0, 1])
@pytest.mark.parametrize('devices', [1, 4])
def test_three_steps_are_those_of_pytorch(oracle, number, devices):
    numbers = oracle('method_losses')
    info = numbers.info['queue']
    case, momentum = info['cases'][number]['case'], info['cases'][number]['m']
    mesh = sharding.make_mesh(jax.devices()[:devices])
    memory = MomentumMemory(momentum, info['queue'], info['dim'], mesh)
    params = {'encoder': {'weight': jnp.asarray(numbers['queue/weight']), 'bias': jnp.asarray(numbers['queue/bias'])}}
    tx = optim.make_optimizer(
        'sgd', lambda step: info['learning_rate'], weight_decay=info['weight_decay'], momentum=info['sgd_momentum']
    )
    queue = {'rows': jnp.asarray(numbers['queue/queue']), 'next': jnp.zeros((), jnp.int32)}
    copy = memory.copy_of({'params': params, 'batch_stats': {}})
    state = TrainState(jnp.int32(0), params, {}, tx.init(params), Frozen({}, {**copy, QUEUE: queue}))
    state = jax.device_put(state, sharding.replicated(mesh))
    step = make_train_step(Linear(info['temperature']), tx, mesh, memory=memory)

    for index in range(info['steps']):
        batch = {name: numbers[f'queue/x_{name}'][index] for name in ('query', 'key')}
        state, metrics = step(state, sharding.to_global(batch, mesh), jax.random.key(0))
        found = state.frozen.updated
        values = {
            'weight': state.params['encoder']['weight'],
            'bias': state.params['encoder']['bias'],
            'key_weight': found[KEY_ENCODER]['params']['encoder']['weight'],
            'key_bias': found[KEY_ENCODER]['params']['encoder']['bias'],
            'queue': found[QUEUE]['rows'],
            'pointer': found[QUEUE]['next'],
        }
        for name, value in values.items():
            expected = numbers[f'{case}/{name}'][index]
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-10, err_msg=f'{name}, step {index}')
        gradient = [numbers[f'{case}/grad_{name}'][index] for name in ('weight', 'bias')]
        norm = np.sqrt(sum(np.square(part).sum() for part in gradient))
        np.testing.assert_allclose(metrics['gradient_norm'], norm, rtol=1e-10)


def test_the_memory_begins_as_a_copy_beside_a_queue_of_unit_rows():
    memory = MomentumMemory(0.9, 12, 5, sharding.make_mesh(jax.devices()[:1]))
    variables = {'params': {name: {'kernel': jnp.ones(3)} for name in ('encoder', 'head', 'probe')}, 'batch_stats': {}}
    parts = memory.init(jax.random.key(0), variables)
    assert parts[KEY_ENCODER]['params'].keys() == {'encoder', 'head'}
    np.testing.assert_allclose(np.linalg.norm(parts[QUEUE]['rows'], axis=1), 1, rtol=1e-6)
    assert QUEUE not in MomentumMemory(0.9, 0, 5, memory.mesh).init(jax.random.key(0), variables)
