"""Networks with random weights that let a signal through, as a run holds them or under PyTorch's names."""

import zlib

import jax
import numpy as np
from flax import traverse_util

from simclr_jax.config import base_config, with_values
from simclr_jax.interop.exported import Exported
from simclr_jax.interop.imported import Imported
from simclr_jax.interop.torch_names import encoder_names, head_names, probe_names, state_dict
from simclr_jax.networks import make_model

# The smallest encoders with either stem.
SMALL = {'model.depth': 6, 'model.width': 0.125, 'model.stem': 'cifar', 'data.image_size': 32}
TINY = {'model.depth': 6, 'model.width': 0.125, 'model.stem': 'imagenet', 'data.image_size': 64}
HEADS = {'head.layers': 2, 'head.out_dim': 8}
CLASSES = 5


def random_network(fields=TINY, *, classes=CLASSES, seed=0, **attributes):
    """A network of these fields of a pretraining. `attributes` are those of `Exported`."""
    config = with_values(base_config(), {**HEADS, **fields})
    model, size = make_model(config, classes), config.data.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    shapes = jax.eval_shape(lambda key, images: model.init(key, images, train=False), jax.random.key(0), images)
    variables = traverse_util.flatten_dict(random_variables(shapes, seed))
    common = {'config': config, 'variables': variables, 'step': 7, 'directory': 'random', 'image_size': size}
    return Exported(**common | attributes)


def random_variables(shapes, seed=0):
    """Random values of these shapes, drawn without a program to compile."""
    rng, leaves = np.random.default_rng(seed), traverse_util.flatten_dict(shapes)
    return traverse_util.unflatten_dict({path: _draw(rng, path[-1], leaf.shape) for path, leaf in leaves.items()})


def _draw(rng, kind, shape):
    values = rng.standard_normal(shape)
    if kind == 'kernel':
        values *= np.sqrt(2 / np.prod(shape[:-1]))
    elif kind == 'var':
        values = rng.uniform(0.5, 1.5, shape)
    else:
        values = 0.1 * values + (kind == 'scale')
    return values.astype(np.float32)


def write_run(network, directory):
    """Makes a work directory of a network. Returns its path."""
    Imported(network.config, network.num_classes, network.variables, network.step, 'random', lambda _: {}).write(
        str(directory)
    )
    return str(directory)


def torch_state_dict(network, *, head=True):
    """The network's state dict, as `simclr export` writes it."""
    names = encoder_names(network.encoder) | (probe_names(network.encoder) if network.num_classes else {})
    names |= head_names(network.head_layers, is_whole=True) if head else {}
    return state_dict(network.variables, names)


def torch_value(name, shape, gain=2):
    """A value of the fixtures' PyTorch networks, by the rule of their description."""
    rng, last = np.random.default_rng(zlib.crc32(name.encode())), name.rpartition('.')[2]
    if last == 'num_batches_tracked':
        return np.zeros((), np.int64)
    if last == 'running_var':
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    values = rng.standard_normal(shape)
    if last == 'weight' and len(shape) > 1:
        values *= np.sqrt(gain / np.prod(shape[1:]))
    else:
        values = 0.1 * values + (last == 'weight')
    return values.astype(np.float32)


def images_by_rule(count, height, width):
    """The fixtures' images, by the rule of their description."""
    random = np.random.default_rng(zlib.crc32(f'images/{count}x{height}x{width}'.encode()))
    coarse, fine = random.uniform(0, 1, (count, 4, 4, 3)), random.uniform(0, 1, (count, height, width, 3))
    coarse = coarse[:, np.arange(height) * 4 // height][:, :, np.arange(width) * 4 // width]
    return (0.7 * coarse + 0.3 * fine).astype(np.float32)


def share(found, expected):
    """Largest difference as a share of the largest entry."""
    assert np.shape(found) == np.shape(expected)
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
