"""The model computes what the reference computes: every stored output, moving statistic and gradient.

The stored values are the reference's float64 results, rounded to float32. In float64 we must meet them to a few
roundings. In float32 the train mode of the deep networks is ill-conditioned. The tolerance there is a multiple of the
distance between the reference's own float32 and float64 runs.
"""

import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.models.blocks import Stage
from simclr_jax.models.heads import ProjectionHead
from simclr_jax.models.layers import Conv
from simclr_jax.models.resnet import ResNet, Stem
from simclr_jax.models.simclr import SimCLR
from support.reference_names import parameter_paths, reference_variables
from support.reference_networks import COMPILER_OPTIONS, convolution_as_product

ARCHITECTURES = ('resnet_r18_cifar', 'resnet_r18_se', 'resnet_r50', 'resnet_r50_sk')
TRAIN_OBJECTIVES = ('train_pool_lin', 'train_lin', 'train_sq')


def model_of(config):
    encoder = ResNet(
        config['resnet_depth'],
        width=config['width_multiplier'],
        stem='cifar' if config['cifar_stem'] else 'imagenet',
        sk_ratio=config['sk_ratio'],
        se_ratio=config['se_ratio'],
    )
    head = ProjectionHead(layers=config['num_proj_layers'], out_dim=config['proj_out_dim'])
    return SimCLR(encoder, head, num_classes=config['num_classes'])


def is_stored_map(module, method_name):
    stem_convolution = isinstance(module, Conv) and isinstance(module.parent, Stem)
    return method_name == '__call__' and (stem_convolution or isinstance(module, Stem | Stage))


def forward(model, variables, images, *, train):
    return model.apply(
        variables,
        images,
        train=train,
        mutable=['batch_stats', 'intermediates'],
        capture_intermediates=is_stored_map,
    )


def gradients(model, variables, images, *, train, cotangents):
    """Outputs, moved collections, and one gradient for each cotangent of (h, z); these depend on z."""

    def outputs_of(params):
        outputs, moved = forward(model, variables | {'params': params}, images, train=train)
        return (outputs['representation'], outputs['projection']), (outputs, moved)

    h_and_z, pull_back, aux = jax.vjp(outputs_of, variables['params'], has_aux=True)
    return *aux, jax.lax.map(lambda cotangent: pull_back(cotangent)[0], cotangents(*h_and_z))


def named_outputs(mode, outputs, moved):
    """Outputs and feature maps under the names of the fixtures."""
    encoder = moved['intermediates']['encoder']
    stem_convolutions = sorted(name for name in encoder['stem'] if name.startswith('conv'))
    maps = {
        'initial_conv': encoder['stem'][stem_convolutions[-1]],
        'initial_max_pool': encoder['stem'],
        **{f'block_group{k}': encoder[f'stage{k}'] for k in range(1, 5)},
    }
    named = {'final_avg_pool': outputs['representation'], 'logits_sup': outputs['logits']}
    named |= {f'h{k}': layer for k, layer in enumerate(outputs['layers'])}
    for name, module in maps.items():
        (x,) = module['__call__']
        named |= {f'{name}_hwmean': np.mean(x, (1, 2)), f'{name}_cmean': np.mean(x, 3)}
    return {f'{mode}/{name}': np.asarray(value) for name, value in named.items()}


def named_statistics(info, moved):
    """Moving statistics after the one call in train mode, under the names of the fixtures."""
    paths = parameter_paths([variable['name'] for variable in info['variables']])
    flat = flax.traverse_util.flatten_dict({'batch_stats': moved['batch_stats']})
    norms = [np.linalg.norm(flat[paths[name]]) for name in info['moving_statistics_order']]
    named = {'train/all_moving_stats_l2': np.asarray(norms)}
    for place, name in info['first_and_last_bn'].items():
        for kind in ('moving_mean', 'moving_variance'):
            named[f'train/{place}_{kind}'] = np.asarray(flat[paths[f'{name}/{kind}']])
    return named


def named_gradients(info, objective, params):
    """Norms and samples of one objective's gradient under the names of the fixtures."""
    paths = parameter_paths([variable['name'] for variable in info['variables']])
    flat = flax.traverse_util.flatten_dict({'params': params})
    encoder_only = objective == 'train_pool_lin'
    order = [name for name in info['gradient_order'] if name.startswith('resnet_model/') or not encoder_only]
    named = {'all_l2': np.asarray([np.linalg.norm(flat[paths[name]]) for name in order])}
    for place, name in info['gradient_variables'].items():
        if name in order:
            gradient = np.ravel(flat[paths[name]])
            named[f'{place}_l2'] = np.linalg.norm(gradient)
            named[f'{place}_first16'] = gradient[:16]
            named[f'{place}_spread64'] = gradient[np.arange(64) * 7919 % gradient.size]
    return {f'grad_{objective}/{name}': value for name, value in named.items()}


def in_float64(reference):
    """Everything the fixture holds, recomputed in float64."""
    info, n = reference.info, len(reference['images'])
    model = model_of(info['config'])

    def compute(variables, images, cotangent_pool, cotangent):
        def of_evaluation(h, z):
            return jnp.zeros_like(h)[None], 2 * z[None] / n

        def of_training(h, z):
            no_h, no_z = jnp.zeros_like(h), jnp.zeros_like(z)
            return jnp.stack([cotangent_pool / n, no_h, no_h]), jnp.stack([no_z, cotangent / n, 2 * z / n])

        return (
            gradients(model, variables, images, train=False, cotangents=of_evaluation),
            gradients(model, variables, images, train=True, cotangents=of_training),
        )

    inputs = [reference[name] for name in ('images', 'cotangent_pool', 'cotangent')]
    with jax.enable_x64(True), nn.intercept_methods(convolution_as_product):
        double = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float64))
        inputs = double([reference_variables(info['variables']), *inputs])
        evaluation, training = jax.device_get(jax.jit(compute, compiler_options=COMPILER_OPTIONS)(*inputs))

    named = named_outputs('eval', *evaluation[:2]) | named_outputs('train', *training[:2])
    named |= named_statistics(info, training[1])
    for objective, index, gradient in [('eval_sq', 0, evaluation[2])] + [
        (objective, index, training[2]) for index, objective in enumerate(TRAIN_OBJECTIVES)
    ]:
        named |= named_gradients(info, objective, jax.tree.map(lambda stack, i=index: stack[i], gradient))
    named['grad_eval_sq/loss'] = np.sum(named['eval/h3'] ** 2) / n
    named['grad_train_pool_lin/loss'] = np.sum(named['train/h0'] * reference['cotangent_pool']) / n
    named['grad_train_lin/loss'] = np.sum(named['train/h3'] * reference['cotangent']) / n
    named['grad_train_sq/loss'] = np.sum(named['train/h3'] ** 2) / n
    return named


def in_float32(reference):
    """Outputs and statistics in float32, through the layers as they are."""
    model = model_of(reference.info['config'])

    @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
    def compute(variables, images):
        return [forward(model, variables, images, train=train) for train in (False, True)]

    variables = reference_variables(reference.info['variables'])
    evaluation, training = jax.device_get(compute(variables, reference['images']))
    named = named_outputs('eval', *evaluation) | named_outputs('train', *training)
    return named | named_statistics(reference.info, training[1])


@pytest.fixture(scope='module', params=ARCHITECTURES)
def reference(request, oracle):
    return oracle(request.param)


def relative_error(reference, name, ours):
    """Largest difference over the largest value of the array, 0 where all are zero (a dead channel's gradient)."""
    difference = np.max(np.abs(reference.pick(name, ours) - reference[name]))
    return 0.0 if difference == 0 else difference / reference.info['float32_noise'][name]['max_abs']


def test_every_variable_has_one_counterpart(reference):
    config, variables = reference.info['config'], reference.info['variables']
    images = jnp.zeros((1, config['height'], config['width'], 3))
    initial = jax.eval_shape(lambda key: model_of(config).init(key, images, train=False), jax.random.key(0))
    ours = {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(initial).items()}
    paths = parameter_paths([variable['name'] for variable in variables])
    assert len(set(paths.values())) == len(variables)
    assert ours == {paths[variable['name']]: tuple(variable['shape']) for variable in variables}


def test_generated_values_are_the_references(reference):
    variables = reference.info['variables']
    paths = parameter_paths([variable['name'] for variable in variables])
    flat = flax.traverse_util.flatten_dict(reference_variables(variables))
    for variable in variables:
        value = flat[paths[variable['name']]].astype(np.float64)
        assert np.linalg.norm(value) == pytest.approx(variable['l2'], rel=1e-6)
        assert value.flat[0] == pytest.approx(variable['first'], rel=1e-6)


@pytest.mark.slow
def test_float64_outputs_statistics_and_gradients(reference):
    ours = in_float64(reference)
    inputs = {'images', 'cotangent', 'cotangent_pool'}
    assert set(ours) == set(reference.arrays) - inputs
    errors = {name: relative_error(reference, name, ours[name]) for name in ours}
    # Stored values carry a rounding to float32, 6e-8; everything else is float64.
    assert {name: error for name, error in errors.items() if error > 1e-6} == {}
    for name in ours:
        if name.endswith('all_l2'):
            np.testing.assert_allclose(reference.pick(name, ours[name]), reference[name], rtol=1e-6, err_msg=name)


def test_float32_outputs_and_statistics(reference):
    ours = in_float32(reference)
    noise = reference.info['float32_noise']
    # The thinned set of the deep networks holds inference on one image alone.
    stored = [name for name in ours if name in reference or not reference.is_thinned]
    assert any(name.startswith('eval/') for name in stored)
    for name in stored:
        # Ten times the reference's own noise: inference is well conditioned, 1e-6, but for selective kernels, 3e-4.
        own = noise[name]['max_abs_diff_over_max_abs']
        assert relative_error(reference, name, ours[name]) < max(1e-5, 10 * own), name


@pytest.mark.parametrize('size, kernel_size, strides', [(8, 1, 2), (8, 3, 1), (8, 3, 2), (7, 3, 2)])
def test_the_product_is_the_convolution(size, kernel_size, strides):
    # What the float64 comparison above computes with; values and gradients, a few float32 roundings apart.
    layer = Conv(4, kernel_size, strides, name='conv', dtype=jnp.float32)
    draw = np.random.default_rng(0).normal
    images = np.float32(draw(size=(2, size, size, 3)))
    variables = layer.init(jax.random.key(0), images)
    cotangent = np.float32(draw(size=jax.eval_shape(layer.apply, variables, images).shape))

    def value_and_gradient(variables, images):
        value, pull_back = jax.vjp(layer.apply, variables, images)
        return value, pull_back(cotangent)

    expected = jax.jit(value_and_gradient)(variables, images)
    with nn.intercept_methods(convolution_as_product):
        product = jax.jit(lambda *inputs: value_and_gradient(*inputs))(variables, images)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), product, expected)
