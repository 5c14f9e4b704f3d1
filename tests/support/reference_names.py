"""The reference's variables under the names of `simclr_jax.models`, and the fixtures' values of them.

Paths are tuples into Flax' variables: ('params', 'encoder', 'stage1', 'block1', 'conv1', 'kernel').
"""

import re
import zlib

import flax
import numpy as np

_COLLECTIONS = {
    'kernel': ('params', 'kernel'),
    'bias': ('params', 'bias'),
    'gamma': ('params', 'scale'),
    'beta': ('params', 'bias'),
    'moving_mean': ('batch_stats', 'mean'),
    'moving_variance': ('batch_stats', 'var'),
}

# The reference keeps a block's layers in one list, activations included: from place and kind to a name.
_BASIC = {'0/conv2d': 'conv1', '1/bn': 'bn1', '2/conv2d': 'conv2', '3/bn': 'bn2'}
_BOTTLENECK_START = {'0/conv2d': 'conv1', '1/bn': 'bn1'}
_BOTTLENECK = _BOTTLENECK_START | {'3/conv2d': 'conv2', '4/bn': 'bn2', '6/conv2d': 'conv3', '7/bn': 'bn3'}
_SELECTIVE_KERNEL = {
    'conv2d_fixed_padding/conv2d': 'conv',
    'batch_norm_relu/bn': 'bn',
    'conv2d_0': 'reduce',
    'batch_norm_relu_1/bn': 'reduce_bn',
    'conv2d_1': 'expand',
}
_SK_BOTTLENECK = (
    _BOTTLENECK_START
    | {'5/conv2d': 'conv3', '6/bn': 'bn3'}
    | {f'3/{theirs}': f'sk/{ours}' for theirs, ours in _SELECTIVE_KERNEL.items()}
)
_STEM = {'0/conv2d': 'conv', '2/bn': 'bn'}
_RESNET_D_STEM = {
    '0/conv2d': 'conv1',
    '1/bn': 'bn1',
    '2/conv2d': 'conv2',
    '3/bn': 'bn2',
    '4/conv2d': 'conv3',
    '6/bn': 'bn3',
}
_SQUEEZE_EXCITATION = {'se_reduce': 'reduce', 'se_expand': 'expand'}


def parameter_paths(names):
    """{reference's name: our path}; whether there are selective kernels shows in the names."""
    sk = any('conv2d_fixed_padding/' in name for name in names)
    return {name: _path(name, sk) for name in names}


def reference_value(name, shape):
    """What the fixtures' generator drew for a variable: float32, a function of its name alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    kind = name.rpartition('/')[2]
    if kind == 'kernel':
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
    elif kind == 'gamma':
        value = 1 + 0.1 * rng.standard_normal(shape)
    elif kind == 'moving_variance':
        value = rng.uniform(0.5, 1.5, shape)
    else:
        value = 0.1 * rng.standard_normal(shape)
    return value.astype(np.float32)


def reference_variables(variables):
    """Flax variables in float32, from a list of {'name', 'shape'} such as a json's `variables`."""
    paths = parameter_paths([variable['name'] for variable in variables])
    values = {paths[v['name']]: reference_value(v['name'], v['shape']) for v in variables}
    if len(values) < len(variables):
        raise ValueError('two of the variables have the same path')
    return flax.traverse_util.unflatten_dict(values)


def _path(name, sk):
    module, _, kind = name.rpartition('/')
    collection, leaf = _COLLECTIONS[kind]
    return (collection, *_module_path(module, sk).split('/'), leaf)


def _module_path(module, sk):
    if module == 'supervised_head/linear_layer/dense':
        return 'probe'
    if match := re.fullmatch(r'_projection_head/linear_layers/(\d+)/(dense|bn_relu/bn)', module):
        return f'head/{match[2].rpartition("/")[2]}{int(match[1]) + 1}'
    if match := re.fullmatch(r'resnet_model/initial_conv_relu_max_pool/(.*)', module):
        return f'encoder/stem/{(_RESNET_D_STEM if sk else _STEM)[match[1]]}'
    match = re.fullmatch(r'resnet_model/block_groups/(\d+)/layers/(\d+)/([^/]*)/(.*)', module)
    return f'encoder/stage{int(match[1]) + 1}/block{int(match[2]) + 1}/{_block_path(match[3], match[4], sk)}'


def _block_path(layers, place, sk):
    if layers == 'se_layer':
        return f'se/{_SQUEEZE_EXCITATION[place]}'
    if layers in ('shortcut_layers', 'projection_layers'):
        return f'shortcut_{place.rpartition("/")[2].removesuffix("2d")}'
    if layers == 'conv2d_bn_layers':
        return _BASIC[place]
    return (_SK_BOTTLENECK if sk else _BOTTLENECK)[place]
