"""SavedModels of the reference in TensorFlow 2: what is in them, as our variables. Behind the TensorFlow door.

The objects of a SavedModel are walked by their attributes in the order in which the reference makes its layers. Names
of files and of variables differ between versions of Keras.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from simclr_jax.config import ConfigError
from simclr_jax.config.storage import first_line
from simclr_jax.interop.graph import NAMES
from simclr_jax.interop.imported import Imported
from simclr_jax.interop.tf1 import of_reference
from simclr_jax.interop.tf1_names import BASE, PROBE, head_prefix, numbered

# Attributes below which the layers of the encoder lie, in the order in which the reference makes them.
_ENCODER = (
    *('initial_conv_relu_max_pool', 'block_groups', 'layers'),
    *('shortcut_layers', 'conv2d_bn_layers', 'projection_layers', 'conv_relu_dropblock_layers'),
    *('conv2d_fixed_padding', 'batch_norm_relu', 'conv2d_0', 'batch_norm_relu_1', 'conv2d_1'),
    *('conv2d', 'bn', 'se_layer', 'se_reduce', 'se_expand'),
)
_LAYER = ('kernel', 'bias', 'gamma', 'beta', 'moving_mean', 'moving_variance')


def is_saved_model(source: str) -> bool:
    """Whether a path, local or gs://, is the directory of a SavedModel."""
    return tf.io.gfile.exists(os.path.join(source, 'saved_model.pb'))


def read_tf2(source: str) -> Imported:
    """Reads a SavedModel of the reference.

    Args:
        source: Directory, local or gs://.

    Raises:
        ConfigError: It is damaged or no SavedModel of SimCLR, or it fits no architecture. The message lists what does
            not fit.
    """
    try:
        with tf.device('CPU'):
            loaded: Any = tf.saved_model.load(source)
    # The loader raises whatever its parsers meet.
    except Exception as error:
        raise ConfigError([f'{source}: no readable SavedModel of TensorFlow: {first_line(error)}']) from error
    model = getattr(loaded, 'model', None)
    if not hasattr(model, 'resnet_model'):
        raise ConfigError([f'{source}: not of SimCLR, whose SavedModels have the object model.resnet_model'])
    try:
        arrays = dict(_variables(model))
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError([f'{source}: its objects are not those of SimCLR: {first_line(error)}']) from error
    found = of_reference(source, {name: array.shape for name, array in arrays.items()}, arrays.__getitem__)
    return dataclasses.replace(found, compute=_function(source, loaded)) if callable(loaded) else found


def _variables(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """(name in TensorFlow 1, values) of every variable."""
    convs = norms = 0
    for layer in _layers(model.resnet_model):
        if hasattr(layer, 'kernel'):
            yield from _values(f'{BASE}/{numbered("conv2d", convs)}', layer)
            convs += 1
        else:
            yield from _values(f'{BASE}/{numbered("batch_normalization", norms)}', layer)
            norms += 1
    layers = getattr(getattr(model, '_projection_head', None), 'linear_layers', ())
    for number, layer in enumerate(layers):
        # The reference's linear head is a single layer.
        place = head_prefix(BASE) + (f'nl_{number}' if len(layers) > 1 else 'l_0')
        yield from _values(f'{place}/dense', layer.dense)
        yield from _values(f'{place}/batch_normalization', layer.bn_relu.bn)
    probe = getattr(getattr(getattr(model, 'supervised_head', None), 'linear_layer', None), 'dense', None)
    if probe is not None:
        yield from _values(PROBE, probe)


def _layers(place: Any) -> Iterator[Any]:
    """The objects with variables below an object, in the order of _ENCODER and of lists."""
    if hasattr(place, 'kernel') or hasattr(place, 'moving_mean'):
        yield place
    elif isinstance(place, (list, tuple)):
        for member in place:
            yield from _layers(member)
    else:
        for name in _ENCODER:
            if hasattr(place, name):
                yield from _layers(getattr(place, name))


def _values(name: str, layer: Any) -> Iterator[tuple[str, np.ndarray]]:
    for variable in _LAYER:
        values = getattr(layer, variable, None)
        if values is not None:
            yield f'{name}/{variable}', np.asarray(values)


def _function(source: str, loaded: Any) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The SavedModel's own function of images [N, H, W, 3], computed in float32."""

    def compute(images: np.ndarray) -> dict[str, np.ndarray]:
        try:
            with tf.device('CPU'):
                found = loaded(tf.constant(images, tf.float32), trainable=False)
            outputs = {ours: found[theirs].numpy() for ours, theirs in NAMES.items() if theirs in found}
        # TensorFlow raises whatever does not fit the saved functions.
        except Exception as error:
            raise ConfigError([f'{source}: it cannot be called as those of SimCLR: {first_line(error)}']) from error
        if 'representation' not in outputs:
            raise ConfigError([f'{source}: its call does not return {NAMES["representation"]}, as those of SimCLR do'])
        return outputs

    return compute
