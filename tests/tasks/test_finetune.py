"""Training on top of a pretrained encoder: what is frozen stays, what is not learns, and the numbers are NumPy's."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax import sharding
from simclr_jax.losses.supervised import sigmoid_cross_entropy
from simclr_jax.models.batch_norm import BatchNorm
from simclr_jax.models.classifier import Classifier, pretrained_into
from simclr_jax.models.encoders import is_in_frozen_part
from simclr_jax.models.heads import ProjectionHead
from simclr_jax.models.resnet import ResNet
from simclr_jax.models.simclr import SimCLR
from simclr_jax.tasks.finetune import Finetune
from simclr_jax.tasks.views import by_image, images_of, labels_of
from simclr_jax.training import optim
from simclr_jax.training.schedule import warmup_cosine
from simclr_jax.training.step import make_train_step
from support.finetuning import ENCODER, HEAD, SIZE, flat, loss_of, shapes_of, start_from, trained_variables

IMAGES, CLASSES, STEPS = 8, 5, 3
# Half the time to compile, for steps that run three times.
QUICKLY = {'xla_backend_optimization_level': 0}
# Float64 sums in another order, amplified by batch norm and three updates.
RELATIVE = 1e-9


def random_batch(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        'views': rng.uniform(size=(IMAGES, 1, SIZE, SIZE, 3)).astype(dtype),
        'label': rng.integers(CLASSES, size=IMAGES).astype(np.int32),
        'mask': np.ones(IMAGES, dtype),
    }


class Run:
    """A few steps from the same pretrained variables. Without any the step is traced, and not compiled."""

    def __init__(self, frozen, *, optimizer='lars', head_layer=1, dtype=np.float32, num_devices=1, steps=STEPS):
        mesh = sharding.make_mesh(jax.devices()[:num_devices])
        model = Classifier(ENCODER, HEAD, CLASSES, head_layer=head_layer, zero_init=True)
        self.task = Finetune(model, SIZE, mesh, frozen)
        schedule = warmup_cosine(0.5, 10, 0)
        tx = optim.make_optimizer(optimizer, schedule, weight_decay=0.01)
        tx = optim.freeze(tx, self.task.is_frozen)
        self.rates = [float(schedule(step)) for step in range(STEPS)]
        self.pretrained = jax.device_put(trained_variables(dtype), sharding.replicated(mesh))
        state = start_from(self.pretrained, self.task, tx, jax.random.key(1), mesh)
        state = jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
        self.start, self.metrics = jax.device_get(state), []
        key = jax.random.key(0)
        batches = [sharding.to_global(random_batch(number, dtype), mesh) for number in range(STEPS)]
        lowered = make_train_step(self.task, tx, mesh).lower(state, batches[0], key)
        self.traced_flops = lowered.cost_analysis()['flops']
        if not steps:
            return
        step = lowered.compile(QUICKLY)
        self.compiled_flops = step.cost_analysis()['flops']
        for batch in batches:
            state, metrics = step(state, batch, key)
            self.metrics.append(jax.device_get(metrics))
        self.state = jax.device_get(state)


run_in_float32 = functools.cache(Run)


@functools.cache
def run_in_float64(*arguments, **settings):
    with jax.enable_x64(True):
        return Run(*arguments, **settings, dtype=np.float64)


@pytest.mark.parametrize('frozen', [0, pytest.param(1, marks=pytest.mark.slow), 3, 5])
def test_frozen_parts_keep_their_bits_and_all_others_learn(frozen):
    run = run_in_float32(frozen)
    frozen = [f'encoder/{part}/' for part in ['stem', 'stage1', 'stage2', 'stage3', 'stage4'][:frozen]]
    for before, after in [(run.start.params, run.state.params), (run.start.batch_stats, run.state.batch_stats)]:
        before, after = flat(before), flat(after)
        moved = {path for path in before if before[path].tobytes() != after[path].tobytes()}
        assert moved == {path for path in before if not path.startswith(tuple(frozen))}


def test_the_start_is_the_pretraining_which_survives_the_run():
    run = run_in_float32(0)
    start, expected = flat({'params': run.start.params, 'batch_stats': run.start.batch_stats}), trained_variables()
    for path, value in flat(expected).items():
        if path in start and 'probe' not in path:
            np.testing.assert_array_equal(start[path], value)
    assert {path.split('/')[2] for path in start if path.split('/')[1] == 'head'} == {'dense1', 'bn1'}
    assert start['params/probe/kernel'].shape == (32, CLASSES)
    jax.tree.map(np.testing.assert_array_equal, run.pretrained, expected)


def test_a_classifier_that_starts_at_zero_gives_all_classes_the_same_chance():
    for frozen in (0, 5):
        loss = run_in_float32(frozen).metrics[0]['loss']
        np.testing.assert_array_max_ulp(loss, np.float32(np.log(CLASSES)), maxulp=1)


def test_no_gradient_is_computed_for_frozen_parts():
    """Operations of the step fall with what is frozen, to one inference when all of the encoder is."""
    everything, half, all_frozen = (run_in_float32(k) for k in (0, 3, 5))
    stem = run_in_float32(1, steps=0)
    assert everything.traced_flops > stem.traced_flops > half.traced_flops > all_frozen.traced_flops
    assert everything.compiled_flops > half.compiled_flops > all_frozen.compiled_flops
    images, variables = random_batch(0)['views'][:, 0], trained_variables()
    encode = jax.jit(lambda v, x: SimCLR(ENCODER, HEAD).apply(v, x, method='encode'))
    inference = encode.lower(variables, images).compile().cost_analysis()['flops']
    # The head's layer, the classifier and the optimiser make the rest; a backward pass would triple it.
    assert all_frozen.compiled_flops < 1.1 * inference


@pytest.mark.parametrize('bottleneck', [False, True])
def test_frozen_stages_use_their_moving_statistics(bottleneck):
    """And those that are not frozen the batch's, whose momentum is the encoder's attribute."""
    encoder = ResNet(50 if bottleneck else 10, sk_ratio=0.0625 if bottleneck else 0, batch_norm_momentum=0.97)
    seen = {}

    def record(call, arguments, settings, context):
        if isinstance(context.module, BatchNorm) and 'train' in settings:
            part = context.module.path[0]
            seen.setdefault(part, set()).add((settings['train'], context.module.momentum))
        return call(*arguments, **settings)

    with nn.intercept_methods(record):
        draw = functools.partial(encoder.init, train=True, frozen=3)
        jax.eval_shape(draw, jax.random.key(0), jnp.zeros((2, SIZE, SIZE, 3)))
    frozen, learning = {(False, 0.97)}, {(True, 0.97)}
    assert seen == {'stem': frozen, 'stage1': frozen, 'stage2': frozen, 'stage3': learning, 'stage4': learning}


def test_the_classifier_sees_the_layers_of_the_pretrained_model():
    variables, images = trained_variables(), random_batch(0)['views'][:, 0]

    @jax.jit
    def features(variables):
        models = [Classifier(ENCODER, HEAD, CLASSES, head_layer=layer) for layer in range(4)]
        return [model.apply(variables, images, method='features') for model in models]

    expected = jax.jit(lambda v: SimCLR(ENCODER, HEAD).apply(v, images, train=False)['layers'])(variables)
    assert len(expected) == 4
    for found, layer in zip(features(variables), expected, strict=True):
        # Two programs, whose sums may be ordered differently.
        np.testing.assert_allclose(found, layer, rtol=1e-5, atol=1e-6)


def test_predictions_are_made_in_inference_mode():
    run = run_in_float32(5)
    variables = {'params': run.state.params, 'batch_stats': run.state.batch_stats}
    images = random_batch(0)['views'][:, 0]
    logits = jax.jit(run.task.predict)(variables, images)
    assert (logits.shape, logits.dtype) == ((IMAGES, CLASSES), jnp.float32)
    features = jax.jit(lambda v, x: run.task.model.apply(v, x, method='features'))
    probe = run.state.params['probe']
    expected = np.float64(features(variables, images)) @ np.float64(probe['kernel']) + probe['bias']
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    # The other images of a batch have no influence.
    others = np.concatenate([images[:1], random_batch(1)['views'][1:, 0]])
    np.testing.assert_allclose(features(variables, others)[:1], features(variables, images)[:1], rtol=1e-5)


def nesterov_in_numpy(features, labels, rates, weight_decay, momentum=0.9):
    """Parameters of a linear classifier that starts at zero, after a step on each batch of features [N, F]."""
    kernel, bias = np.zeros((features[0].shape[1], CLASSES)), np.zeros(CLASSES)
    kernel_velocity, bias_velocity = np.zeros_like(kernel), np.zeros_like(bias)
    for h, label, rate in zip(features, labels, rates, strict=True):
        logits = h @ kernel + bias
        probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        error = (probability - np.eye(CLASSES)[label]) / len(h)
        kernel_gradient, bias_gradient = h.T @ error + weight_decay * kernel, error.sum(0) + weight_decay * bias
        kernel_velocity = momentum * kernel_velocity - rate * kernel_gradient
        bias_velocity = momentum * bias_velocity - rate * bias_gradient
        kernel = kernel + momentum * kernel_velocity - rate * kernel_gradient
        bias = bias + momentum * bias_velocity - rate * bias_gradient
    return kernel, bias


def test_linear_evaluation_is_nesterov_on_the_representations():
    run = run_in_float64(5, optimizer='momentum', head_layer=0)
    batches = [random_batch(number, np.float64) for number in range(STEPS)]
    with jax.enable_x64(True):
        encode = jax.jit(lambda v, x: SimCLR(ENCODER, HEAD).apply(v, x, method='encode'))
        features = [np.asarray(encode(trained_variables(np.float64), batch['views'][:, 0])) for batch in batches]
    labels = [batch['label'] for batch in batches]
    kernel, bias = nesterov_in_numpy(features, labels, run.rates, weight_decay=0.01)
    np.testing.assert_allclose(run.state.params['probe']['kernel'], kernel, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(run.state.params['probe']['bias'], bias, rtol=1e-9, atol=1e-12)
    assert 'head' not in run.state.params


def test_eight_devices_are_one():
    """With a stage, a layer of the head and the classifier learning."""
    one, eight = (run_in_float64(4, optimizer='momentum', num_devices=number) for number in (1, 8))
    for name in ('loss', 'accuracy', 'gradient_norm'):
        np.testing.assert_allclose([m[name] for m in eight.metrics], [m[name] for m in one.metrics], rtol=RELATIVE)
    for found, expected in [
        (eight.state.params, one.state.params),
        (eight.state.batch_stats, one.state.batch_stats),
    ]:
        for path, value in flat(expected).items():
            tolerance = RELATIVE * max(np.abs(value).max(), 1e-6)
            np.testing.assert_allclose(flat(found)[path], value, rtol=0, atol=tolerance, err_msg=path)


def linear_loss():
    """Loss and metrics of a linear classifier, away from zero, on a frozen encoder: batch -> scalars."""
    task = Finetune(Classifier(ENCODER, HEAD, CLASSES), SIZE, sharding.make_mesh(jax.devices()[:1]), 5)
    variables = trained_variables()
    rng = np.random.default_rng(1)
    probe = {'kernel': rng.standard_normal((32, CLASSES)), 'bias': rng.standard_normal(CLASSES)}
    params = {
        'encoder': variables['params']['encoder'],
        'probe': jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), probe),
    }
    statistics = {'encoder': variables['batch_stats']['encoder']}
    loss = jax.jit(lambda batch: loss_of(task, params, statistics, batch)[1])
    images = random_batch(0)['views'][:, 0]
    return loss, np.float64(jax.jit(task.predict)({'params': params, 'batch_stats': statistics}, images))


def test_rows_of_mask_zero_do_not_count():
    loss, logits = linear_loss()
    batch = random_batch(0)
    batch['mask'][5:] = 0
    other = batch | {'views': batch['views'].copy(), 'label': batch['label'].copy()}
    other['views'][5:], other['label'][5:] = 1, -1
    found = loss(batch)
    jax.tree.map(np.testing.assert_array_equal, loss(other), found)
    log_probability = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -log_probability[np.arange(5), batch['label'][:5]].mean()
    np.testing.assert_allclose(found['loss'], expected, rtol=1e-4)
    np.testing.assert_allclose(found['accuracy'], (logits.argmax(1) == batch['label'])[:5].mean())


def sigmoid_cross_entropy_in_numpy(logits, labels, weights):
    total = 0.0
    for row, targets, weight in zip(logits, labels, weights, strict=True):
        for logit, target in zip(row, targets, strict=True):
            probability = 1 / (1 + np.exp(-logit))
            if target >= 0:
                total -= weight * np.log(probability if target == 1 else 1 - probability)
    return total / weights.sum()


def test_several_labels_an_image():
    loss, logits = linear_loss()
    rng = np.random.default_rng(2)
    batch = random_batch(0) | {'label': rng.integers(-1, 2, size=(IMAGES, CLASSES)).astype(np.int32)}
    batch['mask'][[1, 6]] = 0
    found = loss(batch)
    assert found.keys() == {'loss'}
    expected = sigmoid_cross_entropy_in_numpy(logits, batch['label'], batch['mask'])
    # Logits of size 5, of which the encoder's float32 rounding is about 1e-5.
    np.testing.assert_allclose(found['loss'], expected, rtol=1e-4)


def test_sigmoid_cross_entropy_of_padding_and_extremes():
    logits = jnp.asarray([[0.0, 0.0, 100.0], [1.0, -1.0, 2.0], [3.0, 3.0, 3.0]])
    labels = jnp.asarray([[1, 0, 0], [-1, -1, -1], [-1, -1, 1]], jnp.int32)
    # Image 1 has no label and does not count; a confident mistake costs its logit.
    expected = (2 * np.log(2) + 100 + np.log1p(np.exp(-3))) / 2
    loss, weights = jax.jit(sigmoid_cross_entropy), jnp.asarray([0.0, 5.0, 2.0])
    np.testing.assert_allclose(loss(logits, labels), expected, rtol=1e-6)
    np.testing.assert_allclose(loss(logits, labels, weights), np.log1p(np.exp(-3)), rtol=1e-6)
    value, gradient = jax.jit(jax.value_and_grad(sigmoid_cross_entropy))(logits, jnp.full((3, 3), -1, jnp.int32))
    assert (value, np.abs(gradient).max()) == (0, 0)


def test_every_view_has_the_label_of_its_image():
    batch = {'views': np.arange(6.0).reshape(3, 2, 1, 1, 1), 'label': np.arange(3), 'mask': np.array([1.0, 0, 1])}
    images = images_of(batch, sharding.make_mesh(jax.devices()[:1]))
    np.testing.assert_array_equal(images.ravel(), np.arange(6))
    np.testing.assert_array_equal(by_image(images, batch), batch['views'])
    labels, weights = labels_of(batch, batch['views'].shape[1])
    np.testing.assert_array_equal(labels, [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(weights, [[1, 1], [0, 0], [1, 1]])


@pytest.mark.parametrize(
    'encoder, message',
    [
        (ResNet(10, width=1 / 8), r'/encoder/.* is \(.*\) in the classifier and \(.*\) in the pretrained'),
        (ResNet(34, width=1 / 16), r'block2.* is \(.*\) in the classifier and missing in the pretrained'),
        (ResNet(10, width=1 / 16, se_ratio=0.25), r'/se/.* is \(.*\) in the classifier and missing'),
    ],
)
def test_another_encoder_is_named(encoder, message):
    with pytest.raises(ValueError, match=message + '.*give encoder and head the depth, width'):
        pretrained_into(shapes_of(Classifier(encoder, HEAD, CLASSES)), trained_variables())


def test_a_shallower_encoder_is_named():
    deeper = trained_variables(encoder=ResNet(34, width=1 / 16))
    with pytest.raises(ValueError, match=r'block.* is missing in the classifier and'):
        pretrained_into(shapes_of(Classifier(ENCODER, HEAD, CLASSES)), deeper)


def test_another_head_is_named():
    wider = ProjectionHead(layers=3, hidden_dim=48)
    fresh = shapes_of(Classifier(ENCODER, wider, CLASSES, head_layer=1))
    with pytest.raises(ValueError, match=r'head/.* is \(.*48.*\) in the classifier and \(.*32.*\) in the pretrained'):
        pretrained_into(fresh, trained_variables())


def test_a_layer_that_the_head_has_not_is_named():
    with pytest.raises(ValueError, match='head layer 4 does not exist; this head has 3: choose 0 to 3'):
        shapes_of(Classifier(ENCODER, HEAD, CLASSES, head_layer=4))


@pytest.mark.parametrize('frozen', [-1, 6])
def test_parts_that_the_encoder_has_not_are_named(frozen):
    with pytest.raises(ValueError, match=f'frozen={frozen} must be from 0 .* to 5, .* stem, stage1, .*stage4'):
        is_in_frozen_part(('encoder', 'stem'), ENCODER, frozen)
