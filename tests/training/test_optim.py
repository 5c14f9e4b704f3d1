"""Optimisers and schedule against the reference's trajectories and learning rates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from simclr_jax.training import optim
from simclr_jax.training.schedule import peak_learning_rate, step_decay, total_steps, warmup_cosine, warmup_steps

# The reference's variables under the names that they have in our models.
PATHS = {
    'conv': 'encoder/conv1/kernel',
    'gamma': 'encoder/bn1/scale',
    'beta': 'encoder/shortcut_bn/bias',
    'bias': 'encoder/conv1/bias',
    'zero': 'encoder/block1/conv2/kernel',
    'proj': 'head/dense1/kernel',
    'zg': 'head/dense2/kernel',
    'zz': 'head/dense3/kernel',
    'head': 'probe/kernel',
    'hbias': 'probe/bias',
}
CASES = [
    f'lars_wd{decay}{head}' for decay in ('1e-4', '1e-6') for head in ('', '_headl2')
] + ['sgd', 'sgd_wd1e-4', 'adam', 'adam_wd1e-4']  # fmt: skip


def to_params(variables):
    return unflatten_dict({path: jnp.asarray(variables[name]) for name, path in PATHS.items()}, sep='/')


def to_variables(params):
    flat = flatten_dict(params, sep='/')
    return {name: np.asarray(flat[path]) for name, path in PATHS.items()}


@functools.cache
def trajectory(numbers, optimizer, rates, weight_decay):
    """Our parameters after each of the reference's gradients {name: [steps, ...]}, and the last state."""
    rates = jnp.asarray(numbers[rates])
    tx = optim.make_optimizer(optimizer, lambda step: rates[step], weight_decay=weight_decay)

    def update(carry, gradients):
        params, state = carry
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    params = to_params({name: numbers[f'init/{name}'] for name in PATHS})
    gradients = to_params({name: numbers[f'grads/{name}'] for name in PATHS})
    (_, state), history = jax.lax.scan(update, (params, tx.init(params)), gradients)
    return to_variables(history), state


def decays(case, name):
    """Whether the reference's gradient of a variable held its decay in this case."""
    if case['optimizer'] == 'lars' and name != 'head':
        return True
    return case['l2_gradient_added']


@pytest.mark.parametrize('case', CASES)
def test_parameters_and_momentum_follow_the_reference(oracle, case):
    """Variables do not influence each other: those without decay in a case are compared to a run without."""
    numbers = oracle('lars')
    case = next(entry for entry in numbers.info['cases'] if entry['case'] == case)
    for name in PATHS:
        weight_decay = case['weight_decay'] if decays(case, name) else 0.0
        history, state = trajectory(numbers, case['optimizer'], case['lr'], weight_decay)
        expected = numbers[f'{case["case"]}/params/{name}']
        atol = 1e-6 * np.abs(expected).max()
        found = numbers.pick(f'{case["case"]}/params/{name}', history[name])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol, err_msg=name)
        if case['optimizer'] == 'lars':
            # optax keeps what is added to the parameters, the reference what is taken off.
            momentum = -to_variables(optax.tree.get(state, 'trace'))[name]
            expected = numbers[f'{case["case"]}/momentum/{name}']
            atol = 1e-6 * np.abs(expected).max()
            found = numbers.pick(f'{case["case"]}/momentum/{name}', momentum)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol, err_msg=name)


def decayed(name, params):
    """Paths of the parameters that shrink when all gradients are zero."""
    tx = optim.make_optimizer(name, lambda step: jnp.float32(0.1), weight_decay=0.1)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    return {path for path, update in flatten_dict(updates, sep='/').items() if update.any()}


def test_what_decays():
    params = to_params({name: np.ones(3, np.float32) for name in PATHS})
    kernels = {path for path in PATHS.values() if path.endswith('kernel')}
    assert decayed('lars', params) == kernels
    batch_norms = {'encoder/bn1/scale', 'encoder/shortcut_bn/bias'}
    assert decayed('momentum', params) == decayed('adam', params) == set(PATHS.values()) - batch_norms


def test_lars_steps_have_the_size_of_the_weights_except_in_the_probe():
    """The trust ratio makes a kernel's step independent of its gradient's scale, 0.001 lr |p|."""
    params = to_params({name: np.full(4, 2, np.float32) for name in PATHS})
    tx = optim.make_optimizer('lars', lambda step: jnp.float32(0.5), weight_decay=0.0)
    updates, _ = tx.update(jax.tree.map(lambda p: 30 * p, params), tx.init(params), params)
    for path, update in flatten_dict(updates, sep='/').items():
        adapted = path.endswith('kernel') and not path.startswith('probe')
        np.testing.assert_allclose(update, -0.001 * 0.5 * 2 if adapted else -0.5 * 60, rtol=1e-6, err_msg=path)


def test_moments_can_be_donated_apart():
    """A training step gives its buffers away: no two of them may be the same one."""
    params = to_params({name: np.ones(3, np.float32) for name in PATHS})
    for name in ('lars', 'momentum', 'adam'):
        tx = optim.make_optimizer(name, lambda step: jnp.float32(0.1), weight_decay=1e-4)
        state = jax.jit(lambda state: state, donate_argnums=0)(tx.init(params))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match="'sgdd' is unknown; choose 'lars'"):
        optim.make_optimizer('sgdd', lambda step: jnp.float32(0.1), weight_decay=0.0)


def schedules(oracle):
    for case in oracle('schedule').info['cases']:
        schedule = warmup_cosine(case['scaled_learning_rate'], case['total_steps'], case['warmup_steps'])
        yield case, schedule, np.array(case['steps'], np.int32), np.array(case['learning_rates'], np.float32)


def test_schedule_is_the_reference_to_one_unit_in_the_last_place(oracle):
    for _, schedule, steps, expected in schedules(oracle):
        actual = np.array([schedule(step) for step in steps])
        assert actual.dtype == np.float32
        np.testing.assert_array_max_ulp(actual, expected, maxulp=1)


def test_compiled_schedule_is_within_rounding_of_the_peak(oracle):
    """Compilers reorder products, vectors have a cosine of their own: two float32 steps at the peak."""
    for case, schedule, steps, expected in schedules(oracle):
        atol = 2 * np.spacing(np.float32(case['scaled_learning_rate']))
        np.testing.assert_allclose(jax.jit(schedule)(steps), expected, rtol=0, atol=atol)


def test_run_shorter_than_its_warmup_ends_at_zero():
    schedule = warmup_cosine(1.0, total_steps=5, warmup_steps=10)
    np.testing.assert_allclose(schedule(np.arange(12)), [t / 10 for t in range(10)] + [0, 0], rtol=1e-6)


def test_lengths_and_peaks_are_the_reference(oracle):
    for case in oracle('schedule').info['cases']:
        batch_size, images = case['train_batch_size'], case['num_examples']
        assert warmup_steps(images, case['warmup_epochs'], batch_size) == case['warmup_steps']
        if not case['train_steps_flag']:
            assert total_steps(images, case['train_epochs'], batch_size) == case['total_steps']
        peak = peak_learning_rate(case['learning_rate'], batch_size, case['learning_rate_scaling'])
        np.testing.assert_allclose(peak, case['scaled_learning_rate'], rtol=1e-12)


def test_without_warmup_the_first_update_has_the_peak():
    schedule = warmup_cosine(0.8, total_steps=4, warmup_steps=0)
    expected = [0.4 * (1 + np.cos(np.pi * step / 4)) for step in range(6)]
    np.testing.assert_allclose(schedule(np.arange(6)), expected[:4] + [0, 0], rtol=1e-6, atol=1e-8)


def test_step_decay():
    schedule = step_decay(0.01, milestones=(3, 6, 7))
    expected = [0.01] * 3 + [0.001] * 3 + [0.0001] + [0.00001] * 2
    np.testing.assert_allclose(schedule(np.arange(9)), expected, rtol=1e-6)
    compiled = jax.jit(schedule)(jnp.int32(6))
    np.testing.assert_allclose(compiled, 0.0001, rtol=1e-6)
    assert compiled.dtype == jnp.float32
    np.testing.assert_allclose(step_decay(2.0, milestones=(), factor=0.5)(100), 2.0)


@pytest.mark.parametrize('name', ['lars', 'momentum', 'adam'])
def test_frozen_parameters_rest_and_all_others_move_as_without(name):
    """Under large gradients and decay; the frozen ones have no moments either."""
    params = to_params({variable: np.full((3, 2), 0.5, np.float32) for variable in PATHS})
    gradients = jax.tree.map(lambda p: 100 * p, params)
    plain = optim.make_optimizer(name, lambda step: jnp.float32(0.1), weight_decay=0.1)
    frozen = optim.freeze(plain, lambda path: path[0] == 'encoder' and path[1] != 'block1')

    def after_three_updates(tx):
        values, state = params, tx.init(params)
        for _ in range(3):
            updates, state = tx.update(gradients, state, values)
            values = optax.apply_updates(values, updates)
        return flatten_dict(values, sep='/'), state

    (found, state), (expected, _) = after_three_updates(frozen), after_three_updates(plain)
    learning = {path for path in PATHS.values() if not path.startswith('encoder') or 'block1' in path}
    assert 0 < len(learning) < len(PATHS)
    for path, value in found.items():
        start = np.float32(0.5) * np.ones((3, 2), np.float32)
        np.testing.assert_array_equal(value, expected[path] if path in learning else start, err_msg=path)
    moments = [leaf for leaf in jax.tree.leaves(state) if jnp.ndim(leaf) == 2]
    assert len(moments) == len(learning) * (2 if name == 'adam' else 1)
