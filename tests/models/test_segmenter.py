"""The head of a segmentation, and its loss: against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import sharding
from simclr_jax.metrics.segmentation import IGNORED
from simclr_jax.models.resnet import ResNet
from simclr_jax.models.segmenter import FullyConvolutionalHead, Segmenter, upsampled
from simclr_jax.tasks.segment import Segment
from simclr_jax.training import optim
from simclr_jax.training.step import make_train_step
from support.finetuning import ENCODER, flat, loss_of, start_from, trained_variables

CLASSES, SIZE = 3, 16


def bilinear(values, size):
    """Enlarges [H, W, K] to [size, size, K] by the definition: pixels are squares, and the border is repeated."""
    for axis in (0, 1):
        length = values.shape[axis]
        places = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.floor(places).astype(int)
        high, share = np.minimum(low + 1, length - 1), (places - low).reshape(-1, *[1] * (2 - axis))
        values = (1 - share) * values.take(low, axis) + share * values.take(high, axis)
    return values


@pytest.mark.parametrize('shape, size', [((4, 4), 16), ((3, 5), 16), ((7, 7), 7), ((2, 2), 5)])
def test_logits_are_enlarged_bilinearly(shape, size, x64):
    logits = np.random.default_rng(0).standard_normal((2, *shape, CLASSES))
    found = jax.jit(upsampled, static_argnums=1)(logits, size)
    for ours, image in zip(found, logits, strict=True):
        np.testing.assert_allclose(ours, bilinear(image, size), rtol=0, atol=1e-12)


def convolved(x, kernel):
    """A 3x3 or 1x1 convolution of [H, W, C] with zeros around it."""
    border = kernel.shape[0] // 2
    padded = np.pad(x, ((border, border), (border, border), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(0, 1))
    return np.einsum('hwcij,ijcd->hwd', windows, kernel)


def test_the_head_is_two_convolutions_and_one_on_both_ends(x64):
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((2, 5, 4, 6))
    head = FullyConvolutionalHead(CLASSES, channels=8)
    shapes = jax.eval_shape(
        lambda key: head.init(key, jnp.zeros(maps.shape, jnp.float32), train=False), jax.random.key(0)
    )
    variables = jax.tree.map(lambda leaf: rng.uniform(0.1, 1, leaf.shape) * rng.choice([-1, 1], leaf.shape), shapes)
    for norm in variables['batch_stats'].values():
        norm['var'] = np.abs(norm['var'])
    params, moving = variables['params'], variables['batch_stats']

    def layer(x, number):
        norm, statistics = params[f'bn{number}'], moving[f'bn{number}']
        y = convolved(x, params[f'conv{number}']['kernel'])
        y = (y - statistics['mean']) / np.sqrt(statistics['var'] + 1e-5) * norm['scale'] + norm['bias']
        return np.maximum(y, 0)

    for ours, x in zip(jax.jit(lambda x: head.apply(variables, x, train=False))(maps), maps, strict=True):
        both = np.concatenate([x, layer(layer(x, 1), 2)], axis=-1)
        expected = convolved(layer(both, 3), params['classify']['kernel']) + params['classify']['bias']
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)


def test_resnet50_has_the_published_sizes():
    model = Segmenter(ResNet(50, stem='imagenet', output_stride=8), 21)
    images = jnp.zeros((1, 512, 512, 3))
    logits, variables = jax.eval_shape(lambda key: model.init_with_output(key, images, train=True), jax.random.key(0))
    assert logits.shape == (1, 64, 64, 21)
    kernels = {path: leaf.shape for path, leaf in flat(variables['params']['decoder']).items() if 'kernel' in path}
    assert kernels == {
        'conv1/kernel': (3, 3, 2048, 512),
        'conv2/kernel': (3, 3, 512, 512),
        'conv3/kernel': (3, 3, 2560, 512),
        'classify/kernel': (1, 1, 512, 21),
    }


def random_batch(seed, images=8):
    rng = np.random.default_rng(seed)
    classes = rng.choice(np.array([*range(CLASSES), IGNORED], np.uint8), (images, SIZE, SIZE))
    views = rng.integers(0, 256, (images, 1, SIZE, SIZE, 3), dtype=np.uint8)
    mask = np.array([1] * (images - 1) + [0], np.float32)
    return {'views': views, 'classes': classes, 'mask': mask, 'index': np.arange(images, dtype=np.int32)}


def make_task(devices, after_block):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    return Segment(Segmenter(ENCODER.clone(output_stride=4), CLASSES, channels=4), SIZE, mesh, after_block + 1)


def test_the_loss_is_the_mean_over_pixels_that_count(x64):
    task, batch = make_task(1, 4), random_batch(0)
    logits = np.random.default_rng(1).standard_normal((8, 4, 4, CLASSES))
    loss, metrics = jax.jit(task.loss)(logits, batch)
    terms, correct = [], []
    for image, classes in list(zip(logits, batch['classes'], strict=True))[:-1]:
        large = bilinear(image, SIZE)
        log_shares = large - np.log(np.exp(large).sum(axis=-1, keepdims=True))
        counted = classes != IGNORED
        terms += (-np.take_along_axis(log_shares[counted], classes[counted][:, None], axis=-1)).ravel().tolist()
        correct += (large.argmax(axis=-1) == classes)[counted].tolist()
    assert float(loss) == pytest.approx(np.mean(terms), rel=1e-12)
    assert float(metrics['accuracy']) == pytest.approx(np.mean(correct), rel=1e-6)


@pytest.mark.parametrize('after_block, moves', [pytest.param(4, (), marks=pytest.mark.slow), (2, ('stage3', 'stage4'))])
def test_frozen_parts_keep_their_bits_and_all_others_learn(after_block, moves):
    task = make_task(1, after_block)
    tx = optim.freeze(optim.make_optimizer('momentum', lambda step: 0.1, weight_decay=5e-4), task.is_frozen)
    state = start_from(trained_variables(), task, tx, jax.random.key(0), task.mesh)
    start = jax.device_get(state)
    step = make_train_step(task, tx, task.mesh)
    for number in range(2):
        state, metrics = step(state, sharding.to_global(random_batch(number), task.mesh), jax.random.key(0))
    assert np.isfinite(metrics['loss'])
    for before, after in ((start.params, state.params), (start.batch_stats, state.batch_stats)):
        before, after = flat(before), flat(jax.device_get(after))
        moved = {path for path in before if before[path].tobytes() != after[path].tobytes()}
        learning = {path for path in before if path.split('/')[0] == 'decoder' or path.split('/')[1] in moves}
        assert moved == learning


@pytest.mark.slow
def test_eight_devices_learn_what_one_learns(x64):
    """Loss and gradients of the global batch, with padding and another number of ignored pixels in each row."""

    def learnt(devices):
        task = make_task(devices, -1)
        tx = optim.make_optimizer('momentum', lambda step: 0.1, weight_decay=5e-4)
        state = start_from(trained_variables(np.float64), task, tx, jax.random.key(0), task.mesh)
        state = jax.tree.map(lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
        batch = sharding.to_global(random_batch(0), task.mesh)

        def loss(params):
            return loss_of(task, params, state.batch_stats, batch)

        return jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params))

    # Sums in another order, in float64.
    one, eight = (learnt(devices) for devices in (1, 8))
    jax.tree.map(lambda one, eight: np.testing.assert_allclose(eight, one, rtol=1e-7, atol=1e-9), one, eight)
