"""Finds the architecture of a network from the shapes of its variables."""

import itertools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from simclr_jax.config import ConfigError, base_config, with_values
from simclr_jax.models.resnet import SHORTCUTS, ResNet
from simclr_jax.networks import make_encoder, make_model

# Our path of a variable, for example ('params', 'encoder', 'stem', 'conv', 'kernel').
Path = tuple[str, ...]
Shape = tuple[int, ...]

# Official values. A file with selective kernels, or squeeze-and-excitation, has one of them.
SK_RATIO, SE_RATIO = 0.0625, 0.25
# Variables that a message lists.
_LISTED = 40


def make_resnet(config: ConfigDict) -> ResNet:
    """The ResNet that a configuration describes."""
    encoder = make_encoder(config)
    assert isinstance(encoder, ResNet), f'{encoder.title} is no ResNet'
    return encoder


def encoder_layers(encoder: ResNet) -> Iterator[tuple[str, str]]:
    """(kind, place) of each layer with variables, in the order in which the reference makes them.

    Args:
        encoder: Architecture.

    Yields:
        'conv', 'biased conv' or 'norm', and the layer's place such as 'stage1/block1/conv1'.
    """
    is_sk = encoder.sk_ratio > 0
    for number in ('1', '2', '3') if is_sk and encoder.stem == 'imagenet' else ('',):
        yield from _conv_norm('stem', f'conv{number}', f'bn{number}')
    for stage, blocks in enumerate(ResNet.STAGES[encoder.depth], start=1):
        for block in range(1, blocks + 1):
            place = f'stage{stage}/block{block}'
            if block == 1 and (stage > 1 or encoder.projects_first):
                yield from _conv_norm(place, 'shortcut_conv', 'shortcut_bn')
            yield from _conv_norm(place, 'conv1', 'bn1')
            if is_sk:
                yield from _conv_norm(f'{place}/sk', 'conv', 'bn')
                yield from _conv_norm(f'{place}/sk', 'reduce', 'reduce_bn')
                yield 'conv', f'{place}/sk/expand'
            else:
                yield from _conv_norm(place, 'conv2', 'bn2')
            if encoder.bottleneck:
                yield from _conv_norm(place, 'conv3', 'bn3')
            if encoder.se_ratio > 0:
                yield 'biased conv', f'{place}/se/reduce'
                yield 'biased conv', f'{place}/se/expand'


def _conv_norm(place: str, conv: str, norm: str) -> Iterator[tuple[str, str]]:
    yield 'conv', f'{place}/{conv}'
    yield 'norm', f'{place}/{norm}'


def shapes_of(config: ConfigDict, num_classes: int) -> dict[Path, Shape]:
    """Shape of each variable of a pretraining's model, by its path.

    Args:
        config: Configuration of a pretraining.
        num_classes: Classes of the probe, 0 without one.
    """
    model, size = make_model(config, num_classes), config.data.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    made = jax.eval_shape(lambda key, images: model.init(key, images, train=False), jax.random.key(0), images)
    flat: Any = traverse_util.flatten_dict(made)
    return {path: leaf.shape for path, leaf in flat.items()}


def find_encoder(
    found: Mapping[str, Shape],
    names_of: Callable[[ResNet], Mapping[str, Path]],
    source: str,
    shown: Callable[[Shape], Shape] = tuple,
    fields: Mapping[str, Any] = types.MappingProxyType({}),
) -> ConfigDict:
    """Finds the encoder whose variables have these names and shapes.

    Args:
        found: Shape of each variable of the encoder in our layout, by its name in the file.
        names_of: Gives the names of an encoder's variables in such a file, with our paths.
        source: Name of the file, for messages.
        shown: Gives a shape of ours in the layout of the file, for messages.
        fields: Fields of the model that the file tells, for example {'model.sk_ratio': 0.0625}.

    Returns:
        A configuration with the fields of the encoder.

    Raises:
        ConfigError: No encoder has these variables. The message lists the differences from the nearest one.
    """
    nearest: list[str] = []
    for config in _candidates(found, names_of, fields):
        shapes = shapes_of(with_values(config, {'head.kind': 'none'}), 0)
        named = names_of(make_resnet(config))
        problems = differences({name: shapes[path] for name, path in named.items()}, found, shown)
        if not problems:
            return config
        nearest = problems if not nearest or len(problems) < len(nearest) else nearest
    nearest = nearest or ['  it has no convolution of images with three channels']
    raise ConfigError([f'{source}: its encoder is none of those that there are; the nearest:', *shortened(nearest)])


def differences(
    expected: Mapping[str, Shape], found: Mapping[str, Shape], shown: Callable[[Shape], Shape] = tuple
) -> list[str]:
    """A line for each variable that is missing, unknown or of another shape. `find_encoder` explains `shown`."""
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        wanted, there = (list(shown(shapes[name])) if name in shapes else None for shapes in (expected, found))
        if there is None:
            lines.append(f'  {name}: missing, {wanted} is expected')
        elif wanted is None:
            lines.append(f'  {name}: unknown, {there}')
        elif wanted != there:
            lines.append(f'  {name}: {there}, {wanted} is expected')
    return lines


def shortened(lines: list[str]) -> list[str]:
    """The lines of a message, as many as fit on a screen."""
    more = len(lines) - _LISTED
    return lines if more <= 0 else [*lines[:_LISTED], f'  and {more} more']


def _candidates(
    found: Mapping[str, Shape], names_of: Callable[[ResNet], Mapping[str, Path]], fields: Mapping[str, Any]
) -> list[ConfigDict]:
    """The configurations of encoders whose variables have the most names in common with these."""
    firsts = [shape for shape in found.values() if len(shape) == 4 and shape[2] == 3 and shape[3] > 0]
    if not firsts:
        return []
    rows, _, _, channels = firsts[0]
    # (stem, channels of its first convolution at width 1, fields of the blocks). ResNet-D's stem begins half as wide.
    plain = ('imagenet' if rows == 7 else 'cifar', 64)
    shortcuts = [{'model.first_shortcut': shortcut} for shortcut in SHORTCUTS]
    kinds = [(*plain, {**shortcut, **ratio}) for shortcut in shortcuts for ratio in ({}, {'model.se_ratio': SE_RATIO})]
    kinds += [(stem, first, {'model.sk_ratio': SK_RATIO}) for stem, first in (('imagenet', 32), ('cifar', 64))]
    candidates = []
    for depth, (stem, first, blocks) in itertools.product(ResNet.STAGES, kinds):
        if 'model.sk_ratio' in blocks and depth < 50:
            continue
        size = {'data.image_size': 32 if stem == 'cifar' else 224, 'model.width': channels / first}
        told = {name: value for name, value in fields.items() if name in blocks}
        config = with_values(base_config(), {'model.depth': depth, 'model.stem': stem, **size, **blocks, **told})
        candidates.append((len(names_of(make_resnet(config)).keys() ^ found.keys()), config))
    candidates.sort(key=lambda candidate: candidate[0])
    return [config for missed, config in candidates if missed <= candidates[0][0]]
