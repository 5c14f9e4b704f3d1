"""The losses of students and of queues against numbers of PyTorch in float64, and by their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.losses.contrastive import info_nce, nt_xent
from simclr_jax.losses.distillation import distillation, squared_distances
from support.losses import on_devices, random_views

pytestmark = pytest.mark.usefixtures('x64')

RELATIVE = 1e-10


def close(found, expected, name):
    """Relative to the largest entry: the entries of a gradient cancel."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=RELATIVE * max(np.abs(expected).max(), 1e-3), err_msg=name)


def test_distillation_is_that_of_pytorch(oracle):
    numbers = oracle('method_losses')
    student, teacher = numbers['distillation/student'], numbers['distillation/teacher']
    labels = {'some': numbers['distillation/labels'], 'none': np.full(len(student), -1, np.int32)}
    cases = numbers.info['distillation']['cases']

    # All cases are one program, which compiles faster than many.
    @jax.jit
    def all_cases(student):
        found = []
        for case in cases:
            loss = functools.partial(
                distillation,
                alpha=case['alpha'],
                temperature=case['tau'],
                tau_squared=case['tau_squared'],
                divisor=case['cross_entropy_divisor'],
            )
            found.append(jax.value_and_grad(loss, has_aux=True)(student, teacher, labels[case['labels']]))
        return found

    for case, ((value, _), gradient) in zip(cases, all_cases(student), strict=True):
        close(value, numbers[f'{case["case"]}/loss'], case['case'])
        close(gradient, numbers[f'{case["case"]}/grad'], case['case'])


def test_a_student_that_equals_its_teacher_does_not_move():
    logits = jnp.asarray(random_views(6, 1, 5)[:, 0].astype(np.float64))
    labels = jnp.full(6, -1, jnp.int32)
    for temperature in (0.1, 1.0, 4.0):
        loss = functools.partial(distillation, temperature=temperature)
        gradient = jax.jit(jax.grad(lambda s, loss=loss: loss(s, logits, labels)[0]))(logits)
        assert np.abs(gradient).max() < 1e-15


def test_images_without_weight_do_not_count():
    student, teacher = (jnp.asarray(random_views(6, 1, 5, seed)[:, 0].astype(np.float64)) for seed in (0, 1))
    labels, weights = jnp.array([0, 1, -1, 2, 3, 4]), jnp.array([1.0, 1, 1, 1, 0, 0])
    for divisor in ('labelled', 'batch'):
        loss = functools.partial(distillation, alpha=0.3, divisor=divisor)
        found, _ = loss(student, teacher, labels, weights=weights)
        close(found, loss(student[:4], teacher[:4], labels[:4])[0], divisor)


def test_disco_is_that_of_pytorch(oracle):
    numbers = oracle('method_losses')
    queue_of, temperature = 'queue', numbers.info['disco']['temperature']
    for case in numbers.info['disco']['cases']:
        arrays = {name: numbers[f'{case["inputs"]}/{name}'] for name in ('teacher_1', 'teacher_2', 'keys', queue_of)}
        teacher = np.stack([arrays['teacher_1'], arrays['teacher_2']], axis=1)
        # A sum over the images is their mean times their number.
        weight = 32 if case['form'] == 'mean32' else case['batch']

        def loss(student, case=case, arrays=arrays, teacher=teacher, weight=weight):
            total = weight * squared_distances(student, teacher)
            if case['info_nce_in_loss']:
                total += info_nce(student[:, :1], arrays['keys'], arrays[queue_of], temperature=temperature)[0]
            return total

        student = np.stack([numbers[f'{case["inputs"]}/student_{view}'] for view in (1, 2)], axis=1)
        value, gradient = jax.jit(jax.value_and_grad(loss))(student)
        close(value, numbers[f'{case["case"]}/loss'], case['case'])
        for view in (1, 2):
            close(gradient[:, view - 1], numbers[f'{case["case"]}/grad_student_{view}'], case['case'])


def unit_rows(count, dimensions, seed):
    rows = random_views(count, 1, dimensions, seed)[:, 0].astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize('with_queue', [False, True])
def test_info_nce_with_the_keys_of_the_batch(with_queue):
    """The classes are the keys of all images, and the queue. Written as a sum, and on four devices."""
    z, keys = random_views(8, 2, 5).astype(np.float64), unit_rows(8, 5, 1)
    queue = unit_rows(12, 5, 2) if with_queue else None
    classes = keys if queue is None else np.concatenate([keys, queue])
    queries = z / np.linalg.norm(z, axis=-1, keepdims=True)
    logits = queries @ classes.T / 0.2
    own = np.stack([logits[i, :, i] for i in range(8)])
    expected = np.mean(np.log(np.exp(logits).sum(-1)) - own)
    found, metrics = jax.jit(functools.partial(info_nce, temperature=0.2, in_batch=True))(z, keys, queue)
    close(found, expected, 'one device')
    found_first = np.argmax(logits, axis=-1) == np.arange(8)[:, None]
    close(metrics['contrast_accuracy'], found_first.mean(), 'accuracy')

    def of_members(both, axis_name):
        return info_nce(both[:, :2], both[:, 2], queue, temperature=0.2, in_batch=True, axis_name=axis_name)

    spread, _ = jax.jit(on_devices(of_members, 4))(np.concatenate([z, keys[:, None]], axis=1))
    close(spread, expected, 'four devices')


def test_info_nce_needs_negatives():
    with pytest.raises(ValueError, match='no negatives'):
        info_nce(jnp.ones((2, 1, 3)), jnp.ones((2, 3)), temperature=0.2)


def test_nt_xent_with_a_queue_has_further_negatives():
    """Each denominator also holds the queue. In blocks, and on four devices, loss and gradients are the same."""
    z, queue = random_views(4, 2, 5).astype(np.float64), unit_rows(6, 5, 1)
    rows = (z / np.linalg.norm(z, axis=-1, keepdims=True)).reshape(8, 5)
    terms = []
    for i in range(8):
        others = [rows[i] @ rows[k] / 0.2 for k in range(8) if k != i] + list(queue @ rows[i] / 0.2)
        terms.append(np.log(np.exp(others).sum()) - rows[i] @ rows[i ^ 1] / 0.2)

    def loss(z, block_size, axis_name=None):
        return nt_xent(z, temperature=0.2, queue=queue, block_size=block_size, axis_name=axis_name)[0]

    gradients = []
    for block_size in (None, 3):
        value, gradient = jax.jit(jax.value_and_grad(functools.partial(loss, block_size=block_size)))(z)
        close(value, np.mean(terms), f'block_size={block_size}')
        gradients.append(gradient)
    close(gradients[1], gradients[0], 'blocks')
    spread, gradient = jax.jit(jax.value_and_grad(on_devices(functools.partial(loss, block_size=None), 4)))(z)
    close(spread, np.mean(terms), 'four devices')
    close(gradient, gradients[0], 'four devices')
