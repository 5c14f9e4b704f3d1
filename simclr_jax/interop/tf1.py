"""TensorFlow 1 checkpoints of the reference: what is in them, as our variables. Behind the TensorFlow door."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from simclr_jax.config import ConfigError, with_values
from simclr_jax.interop.architecture import Path, Shape, differences, find_encoder, make_resnet, shapes_of, shortened
from simclr_jax.interop.imported import Imported
from simclr_jax.interop.tf1_names import BASE, EMA, PROBE, encoder_names, head_names, head_prefix, probe_names
from simclr_jax.interop.tf1_network import Network

# What TensorFlow's reader raises for damaged files.
_UNREADABLE = (tf.errors.OpError, IndexError, ValueError, RuntimeError)
# Last parts of the names of a network's variables.
_VARIABLES = ('kernel', 'bias', 'gamma', 'beta', 'moving_mean', 'moving_variance')
# Weights that a user may choose: the part of the checkpoint.
PARTS = {'base': BASE, 'ema': EMA}


def find_checkpoint(source: str) -> str | None:
    """The prefix of the checkpoint that a path means: the prefix itself, one of its files, or its directory.

    Args:
        source: Path, local or gs://.

    Returns:
        The prefix, or None if there is no checkpoint of TensorFlow.
    """
    prefix = re.sub(r'\.(index|meta|data-\d+-of-\d+)$', '', source)
    if tf.io.gfile.exists(f'{prefix}.index'):
        return prefix
    if not tf.io.gfile.isdir(source):
        return None
    listed = sorted((name for name in tf.io.gfile.listdir(source) if name.endswith('.index')), key=_step)
    latest = tf.train.latest_checkpoint(source)
    if latest or not listed:
        return latest
    return os.path.join(source, listed[-1].removesuffix('.index'))


def _step(name: str) -> tuple[int, str]:
    """Sorts files of checkpoints by their step."""
    found = re.search(r'-(\d{1,15})\.index$', name)
    return int(found[1]) if found else -1, name


def read_tf1(prefix: str, weights: str) -> Imported:
    """Reads a checkpoint of the reference.

    Args:
        prefix: Prefix of the checkpoint, see `find_checkpoint`.
        weights: 'base' for the weights of the last step, 'ema' for their moving average. '' for those that are there.

    Raises:
        ConfigError: It is damaged or no checkpoint of SimCLR, the weights are not there or have to be chosen, or they
            fit no architecture. The message lists what does not fit.
    """
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    except _UNREADABLE as error:
        raise ConfigError([f'{prefix}: no readable checkpoint of TensorFlow: {str(error).splitlines()[0]}']) from error
    part = _choose(prefix, shapes, weights)

    def read(name: str) -> np.ndarray:
        try:
            return reader.get_tensor(name)
        except _UNREADABLE as error:
            raise ConfigError([f'{prefix}: it is damaged: {str(error).splitlines()[0]}']) from error

    step = int(read('global_step')) if 'global_step' in shapes else 0
    found = of_reference(prefix, shapes, read, part, step)
    return dataclasses.replace(found, origin=f'{weights or "the"} weights of {prefix}')


def of_reference(
    source: str, shapes: Mapping[str, Shape], read: Callable[[str], np.ndarray], part: str = BASE, step: int = 0
) -> Imported:
    """A network whose variables have the reference's names in TensorFlow 1.

    Args:
        source: Name of the file, for messages.
        shapes: Shape of each variable by its name. Unknown names are passed over.
        read: Gives the values of a variable.
        part: BASE or EMA, the part of the variables that holds the encoder.
        step: Training step of the weights.

    Raises:
        ConfigError: The variables fit no architecture. The message lists what does not fit.
    """
    config, num_classes, names = _names(source, shapes, part)
    arrays = {name: np.asarray(read(name), np.float32) for name in names}
    return Imported(
        config=config,
        num_classes=num_classes,
        variables={path: arrays[name] for name, path in names.items()},
        step=step,
        origin=source,
        compute=Network(arrays, make_resnet(config), part),
    )


def _choose(prefix: str, shapes: Mapping[str, Shape], weights: str) -> str:
    """The part of the checkpoint that holds the wanted encoder."""
    there = [name for name, part in PARTS.items() if any(variable.startswith(f'{part}/') for variable in shapes)]
    if not there:
        named = ', '.join(sorted(shapes)[:10]) or 'none'
        raise ConfigError([f'{prefix}: not of SimCLR, whose variables begin with {BASE}/; there are: {named}'])
    if weights and weights not in there:
        raise ConfigError([f'--weights={weights}: {prefix} has only {there[0]}'])
    if not weights and len(there) > 1:
        raise ConfigError(
            [f'{prefix} has the weights of the last step and their moving average; choose --weights=base or ema']
        )
    return PARTS[weights or there[0]]


def _names(prefix: str, shapes: Mapping[str, Shape], part: str) -> tuple[ConfigDict, int, dict[str, Path]]:
    """The configuration of the network, its classes, and the name and our path of each of its variables."""
    # An optimiser's slots lie below the variables: NAME/kernel/Momentum.
    own = {name: shape for name, shape in shapes.items() if name.rpartition('/')[2] in _VARIABLES}
    layer = re.compile(rf'{part}/(conv2d|batch_normalization)(_\d+)?/')
    of_encoder = {name: shape for name, shape in own.items() if layer.match(name)}
    config = find_encoder(of_encoder, lambda encoder: encoder_names(encoder, part), prefix)
    of_heads = {name: shape for name, shape in own.items() if name.startswith((head_prefix(part), PROBE))}
    kernels = sorted(name for name in of_heads if not name.startswith(PROBE) and name.endswith('/dense/kernel'))
    kind = 'none' if not kernels else 'linear' if '/l_0/' in kernels[0] else 'nonlinear'
    head = {'head.kind': kind, 'head.layers': max(1, len(kernels))}
    if kernels:
        head |= {'head.out_dim': of_heads[kernels[-1]][-1]}
    if len(kernels) > 1:
        head |= {'head.hidden_dim': of_heads[kernels[0]][-1]}
    num_classes = (of_heads.get(f'{PROBE}/kernel') or (0,))[-1]
    config = with_values(config, {**head, 'probe': num_classes > 0})
    names = head_names(kind, len(kernels), part) | (probe_names() if num_classes else {})
    expected = shapes_of(config, num_classes)
    problems = differences({name: expected[path] for name, path in names.items()}, of_heads)
    if problems:
        raise ConfigError([f'{prefix}: its heads are none of those that there are:', *shortened(problems)])
    return config, num_classes, encoder_names(make_resnet(config), part) | names
