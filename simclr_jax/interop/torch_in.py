"""State dicts of PyTorch: torchvision, timm, lightly, solo-learn, VISSL, MoCo and our own exports, as our variables."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from simclr_jax.config import ConfigError, check, with_values
from simclr_jax.interop.architecture import Path, differences, find_encoder, shapes_of, shortened
from simclr_jax.interop.imported import Imported
from simclr_jax.interop.torch_files import read_state_dict
from simclr_jax.interop.torch_inverted_in import find_inverted, inverted_facts, prefix_of
from simclr_jax.interop.torch_inverted_network import Network as InvertedNetwork
from simclr_jax.interop.torch_layers import StateDict
from simclr_jax.interop.torch_names import (
    COUNTER,
    classifier_name,
    encoder_names,
    from_torch,
    head_names,
    numbered_layers,
    probe_names,
    torch_shape,
)
from simclr_jax.interop.torch_network import Network
from simclr_jax.networks import make_encoder

# Parts of names that mark the moving average of an encoder: MoCo's key encoder, BYOL's target, DINO's teacher.
_AVERAGED = re.compile(r'(^|[._])(encoder_k|ema|\w*momentum\w*|\w*target\w*|\w*teacher\w*)\.')
# Encoders of MoCo, whose fc is a projection.
_PROJECTS = re.compile(r'(encoder_[qk]|base_encoder|momentum_encoder)\.$')
_OF_ENCODER = re.compile(r'(conv1|bn1|layer\d+)\.')


def read_torch(
    source: str, *, weights: str, normalize: tuple | None, pool: str, stem_padding: int | None = None
) -> Imported:
    """Reads the state dict of a ResNet, or of torchvision's EfficientNet or MobileNetV3.

    Args:
        source: File, see `torch_files.read_state_dict`.
        weights: 'base' for the encoder that was trained, 'ema' for its moving average. '' for the one that is there.
        normalize: (mean, std) that the images of the training were normalised with, see `convert.NORMALIZATIONS`. None:
            what the file says.
        pool: Padding of the max pooling, 'symmetric' or 'same'. '': what the file says, otherwise 'symmetric'.
        stem_padding: Padding of a first convolution of 3x3, 1 or 2. None: what the file says.

    Raises:
        ConfigError: The file cannot be read, holds no such network or several, or does not fit. The message lists what
            does not fit.
    """
    arrays, facts = read_state_dict(source)
    options = {'weights': weights, 'normalize': normalize, 'pool': pool, 'stem_padding': stem_padding}
    found = (_resnet if prefix_of(arrays) is None else _inverted)(source, arrays, facts, **options)
    own, config = found.own, found.config
    if problems := check(config):
        raise ConfigError([f'{source}: it describes a network that cannot be:', *problems])
    is_projection = bool(_PROJECTS.search(found.prefix))
    config, num_classes, names = _heads(source, config, own, is_projection)
    names |= encoder_names(make_encoder(config))
    _check_kinds(source, {name: own[name] for name in names})
    left_out = {**found.others, **{name: array for name, array in own.items() if name not in names}}
    kept = {name: array for name, array in own.items() if name in names or name.startswith('head.')}
    return Imported(
        config=config,
        num_classes=num_classes,
        variables={path: from_torch(own[name]) for name, path in names.items()},
        step=max(facts.get('step', 0), 0),
        origin=source + (f', {found.prefix.removesuffix(".")}' if found.prefix else ''),
        compute=found.compute(kept),
        computed_by="NumPy, with torchvision's strides and paddings",
        notes=tuple(_notes(left_out)),
    )


@dataclasses.dataclass(frozen=True)
class _Found:
    """An encoder in a state dict.

    Attributes:
        prefix: Beginning of the names of its network.
        own: State dict of the network with torchvision's names, without counters.
        others: Other arrays of the file.
        config: Configuration with the fields of the encoder.
        compute: Makes the network in NumPy from the part of the state dict that is used.
    """

    prefix: str
    own: dict[str, np.ndarray]
    others: dict[str, np.ndarray]
    config: ConfigDict
    compute: Callable[[dict[str, np.ndarray]], StateDict]


def _resnet(
    source: str,
    arrays: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    *,
    weights: str,
    normalize: tuple | None,
    pool: str,
    stem_padding: int | None,
) -> _Found:
    prefix = _choose(source, arrays, weights)
    own, others = _of_encoder(arrays, prefix)
    for name in _partial_heads(own, facts, 'fc'):
        others[name] = own.pop(name)
    encoder = {name: from_torch(array) for name, array in own.items() if _OF_ENCODER.match(name)}
    ratios = {f'model.{name}': facts[name] for name in ('sk_ratio', 'se_ratio') if facts.get(name)}
    shapes = {name: array.shape for name, array in encoder.items()}
    config = find_encoder(shapes, encoder_names, source, torch_shape, ratios)
    inputs = _inputs(source, facts, config, normalize, pool, stem_padding)
    config = with_values(config, _fields(inputs, facts))
    return _Found(prefix, own, others, config, lambda kept: Network(kept, {**inputs, 'whole_head': True}))


def _inverted(
    source: str,
    arrays: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    *,
    weights: str,
    normalize: tuple | None,
    pool: str,
    stem_padding: int | None,
) -> _Found:
    options = {
        '--weights=ema': weights == 'ema',
        f'--pool={pool}': bool(pool),
        f'--stem-padding={stem_padding}': stem_padding is not None,
    }
    given = [option for option, is_given in options.items() if is_given]
    if given:
        raise ConfigError([f'{", ".join(given)}: {source} holds no ResNet; leave this out'])
    prefix = prefix_of(arrays) or ''
    own, others = {}, {}
    for name, array in arrays.items():
        if name.startswith(prefix) and not name.endswith(f'.{COUNTER}'):
            own[name.removeprefix(prefix)] = array
        elif not name.endswith(f'.{COUNTER}'):
            others[name] = array
    config = find_inverted(source, own, facts)
    for name in _partial_heads(own, facts, classifier_name(make_encoder(config))):
        others[name] = own.pop(name)
    mean, std = _normalization(source, facts, normalize)
    inputs = {'mean': mean, 'std': std}
    config = with_values(config, _fields(inputs, facts))
    known = {**inverted_facts(config), **inputs, 'whole_head': True}
    return _Found(prefix, own, others, config, lambda kept: InvertedNetwork(kept, known))


def _fields(inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a configuration for a network's inputs."""
    size = {'data.image_size': facts['image_size']} if facts else {}
    return {f'model.{name}': value for name, value in inputs.items()} | size


def _encoders(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Beginnings of the names of all ResNets in a state dict."""
    found = set()
    for name in arrays:
        prefix = re.match(r'(.*?)(?:conv1\.(?:0\.)?weight|0\.weight)$', name)
        if prefix and _layers_below(arrays, prefix[1]):
            found.add(prefix[1])
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def _layers_below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, str]:
    """Layer of a ResNet in a state dict -> its name in torchvision. Empty if this prefix has no ResNet."""
    below = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    if 'layer1.0.conv1.weight' in below:
        return {name.partition('.')[0]: name.partition('.')[0] for name in below}
    return numbered_layers(below)


def _choose(source: str, arrays: Mapping[str, np.ndarray], weights: str) -> str:
    """Beginning of the names of the wanted encoder."""
    found = _encoders(arrays)
    if not found:
        named = ', '.join(sorted(arrays)[:10])
        raise ConfigError(
            [
                f'{source}: it holds no ResNet, EfficientNet or MobileNetV3 with the names of torchvision; there are: '
                f'{named}, ...'
            ]
        )
    averaged = [prefix for prefix in found if _AVERAGED.search(prefix)]
    choices = {'base': [prefix for prefix in found if prefix not in averaged], 'ema': averaged}
    there = [name for name, prefixes in choices.items() if prefixes]
    if weights and weights not in there:
        raise ConfigError([f'--weights={weights}: {source} has only {there[0]}'])
    if not weights and len(there) > 1:
        raise ConfigError([f'{source} has an encoder and its moving average; choose --weights=base or ema'])
    prefixes = choices[weights or there[0]]
    if len(prefixes) > 1:
        raise ConfigError([f'{source} has several encoders: {", ".join(prefixes)}; keep one of them in the file'])
    return prefixes[0]


def _of_encoder(arrays: Mapping[str, np.ndarray], prefix: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The arrays of the chosen network by torchvision's names, and all others by their own names."""
    layers, beside = _layers_below(arrays, prefix), re.sub(r'[^.]*\.$', '', prefix)
    own, others = {}, {}
    for name, array in arrays.items():
        first, _, rest = name.removeprefix(prefix).partition('.')
        if name.endswith(f'.{COUNTER}'):
            continue
        if name.startswith(prefix) and first in layers:
            own[f'{layers[first]}.{rest}'.replace('.shortcut.', '.downsample.')] = array
        # The linear classifier of solo-learn lies beside the encoder.
        elif prefix and name in (f'{beside}classifier.weight', f'{beside}classifier.bias'):
            own[f'fc.{name.rpartition(".")[2]}'] = array
        else:
            others[name] = array
    return own, others


def _partial_heads(own: Mapping[str, np.ndarray], facts: Mapping[str, Any], classifier: str) -> list[str]:
    """Names of the heads of a fine-tuned classifier that a pretraining does not have."""
    starts = ('head.',) if facts and not facts.get('whole_head') else ()
    starts += (f'{classifier}.',) if facts.get('head_layer') else ()
    return [name for name in own if name.startswith(starts)]


def _inputs(
    source: str,
    facts: Mapping[str, Any],
    config: ConfigDict,
    normalize: tuple | None,
    pool: str,
    stem_padding: int | None,
) -> dict[str, Any]:
    """The fields mean, std, pool and border of a network's model, which its arrays do not tell."""
    is_small = config.model.stem == 'cifar'
    mean, std = _normalization(source, facts, normalize)
    if is_small and not facts and stem_padding is None:
        raise ConfigError(
            [
                f'{source} begins with a 3x3 convolution, and does not say its padding; choose --stem-padding=2 for '
                'networks of solo-learn, or --stem-padding=1 for those of lightly and most other programs'
            ]
        )
    wrong = '--pool' if is_small and pool else '--stem-padding' if not is_small and stem_padding else ''
    if wrong:
        what = 'a 3x3 convolution, and has no max pooling' if is_small else 'a 7x7 convolution'
        raise ConfigError([f'{wrong}: {source} begins with {what}; leave {wrong} out'])
    pool = 'same' if is_small else pool or facts.get('pool', 'symmetric')
    border = stem_padding - 1 if stem_padding else facts.get('border', 0)
    return {'mean': mean, 'std': std, 'pool': pool, 'border': border}


def _normalization(source: str, facts: Mapping[str, Any], normalize: tuple | None) -> tuple[tuple, tuple]:
    """Mean and deviation of each colour that the images are normalised with."""
    if not facts and normalize is None:
        raise ConfigError(
            [
                f'{source} does not say how its images were normalised; choose --normalize=imagenet (mean and '
                'deviation of ImageNet, the default of torchvision, timm, lightly, solo-learn, VISSL and MoCo), '
                '--normalize=none (values in [0, 1], as in SimCLR), or six numbers: three means and three deviations'
            ]
        )
    return normalize if normalize is not None else (tuple(facts['mean']), tuple(facts['std']))


def _heads(
    source: str, config: ConfigDict, arrays: Mapping[str, np.ndarray], is_projection: bool
) -> tuple[ConfigDict, int, dict[str, Path]]:
    """The configuration with the heads, the classes of the probe, and the names and paths of their variables."""
    encoder = make_encoder(config)
    name = classifier_name(encoder)
    kernel, has_bias = arrays.get(f'{name}.weight'), f'{name}.bias' in arrays
    is_probe = kernel is not None and has_bias and np.shape(kernel)[1:] == (encoder.feature_width,)
    num_classes = len(kernel) if is_probe and not is_projection and kernel is not None else 0
    found = (name for name in arrays if re.match(r'head\.dense\d{1,4}\.weight$', name))
    kernels = sorted(found, key=lambda name: (len(name), name))
    fields: dict[str, Any] = {'head.kind': 'none', 'probe': num_classes > 0}
    if kernels:
        fields |= {'head.layers': len(kernels), 'head.out_dim': _rows(arrays[kernels[-1]])}
        fields |= {'head.kind': 'nonlinear' if len(kernels) > 1 else 'linear'}
    if len(kernels) > 1:
        fields |= {'head.hidden_dim': _rows(arrays[kernels[0]])}
    config = with_values(config, fields)
    names = head_names(len(kernels), is_whole=True) | (probe_names(encoder) if num_classes else {})
    expected = {name: shapes_of(config, num_classes)[path] for name, path in names.items()}
    in_heads = {name for name in arrays if name.startswith('head.')} | (names.keys() & arrays.keys())
    there = {name: from_torch(arrays[name]).shape for name in in_heads}
    # The last norm of our head has no offset, and PyTorch stores one of zeros.
    last = f'head.bn{len(kernels)}.bias'
    if last in there and not arrays[last].any():
        del there[last]
    problems = differences(expected, there, torch_shape)
    if problems:
        raise ConfigError([f'{source}: its heads are none of those that there are:', *shortened(problems)])
    return config, num_classes, names


def _rows(array: np.ndarray) -> int:
    """Rows of a matrix, at least 1. What is no matrix is found by its shape later."""
    return max(1, *array.shape[:1]) if array.ndim else 1


def _check_kinds(source: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ConfigError if weights are integers, as in quantised networks."""
    integers = [f'  {name}: {array.dtype}' for name, array in arrays.items() if array.dtype != np.float32]
    if integers:
        raise ConfigError(
            [f'{source}: these weights are no floats; give the network before it was quantised:', *shortened(integers)]
        )


def _notes(left_out: Mapping[str, np.ndarray]) -> list[str]:
    unknown = {name: array for name, array in left_out.items() if not re.fullmatch(r'head\.bn\d+\.bias', name)}
    if not unknown:
        return []
    lines = [f'  {name}: {list(array.shape)}' for name, array in sorted(unknown.items())]
    return ['Left out:', *shortened(lines)]
