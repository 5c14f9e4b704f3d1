"""State dicts of torchvision's EfficientNet and MobileNetV3, and our own exports of them, as our variables."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from simclr_jax.config import ConfigError, base_config, check, with_values
from simclr_jax.config.encoders import VARIANTS
from simclr_jax.interop.architecture import Shape, differences, shapes_of, shortened
from simclr_jax.interop.inverted import FAMILIES, Inverted, facts_of
from simclr_jax.interop.torch_names import encoder_names, from_torch, torch_shape
from simclr_jax.networks import make_encoder

_FIRST = 'features.0.0.weight'
_OF_ENCODER = re.compile(r'features\.|classifier\.0\.')
# Widths that are tried where a file does not tell its own.
_WIDTHS = (1.0, 0.25, 0.35, 0.5, 0.75, 1.25, 1.4, 1.5, 2.0)


def prefix_of(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Beginning of the names of the only EfficientNet or MobileNetV3 in a state dict. None: there is none, or several.

    Args:
        arrays: State dict.
    """
    found = [name.removesuffix(_FIRST) for name in arrays if name.endswith(_FIRST)]
    return found[0] if len(found) == 1 else None


def find_inverted(source: str, own: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> ConfigDict:
    """Finds the encoder whose variables have these names and shapes.

    Args:
        source: Name of the file, for messages.
        own: State dict with torchvision's names, without counters.
        facts: Facts of our own exports, {} for files of other programs.

    Raises:
        ConfigError: No encoder has these variables. The message lists the differences from the nearest one.
    """
    found = {name: from_torch(array).shape for name, array in own.items() if _OF_ENCODER.match(name)}
    nearest: list[str] = []
    for config in _likeliest(_candidates(source, own, facts), found):
        encoder = make_encoder(config)
        shapes, names = shapes_of(with_values(config, {'head.kind': 'none'}), 0), encoder_names(encoder)
        problems = differences({name: shapes[path] for name, path in names.items()}, found, torch_shape)
        if not problems:
            return config
        nearest = problems if not nearest or len(problems) < len(nearest) else nearest
    raise ConfigError(
        [
            f'{source}: its encoder is no EfficientNet and no MobileNetV3 that there is; the nearest:',
            *shortened(nearest),
        ]
    )


def _likeliest(candidates: Iterable[ConfigDict], found: Mapping[str, Shape]) -> list[ConfigDict]:
    """The candidates with the fewest differences in names and in the channels of the first and the last convolution."""
    scored = []
    for config in candidates:
        encoder = make_encoder(config)
        assert isinstance(encoder, Inverted), f'{encoder.title} has no names in torchvision'
        names = encoder_names(encoder)
        channels = {'stem/conv': encoder.stem_channels, 'top/conv': encoder.top_channels}
        missed = len(names.keys() ^ found.keys())
        for name, path in names.items():
            wanted = channels.get('/'.join(path[2:4])) if path[-1] == 'kernel' else None
            missed += wanted is not None and found.get(name, (0,))[-1:] != (wanted,)
        scored.append((missed, config))
    least = min((missed for missed, _ in scored), default=0)
    return [config for missed, config in scored if missed == least]


def _candidates(source: str, own: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Iterator[ConfigDict]:
    """Configurations of encoders, the likeliest first."""
    is_staged = any(name.startswith('features.1.0.block.') for name in own)
    family = facts.get('encoder') or ('efficientnet' if is_staged else 'mobilenet')
    variants = (facts['variant'],) if facts else VARIANTS.get(family, ())
    widths = (facts['width'],) if facts else _WIDTHS
    stem = facts.get('stem', 'imagenet')
    for width, variant in itertools.product(widths, variants):
        fields = {'model.encoder': family, 'model.variant': variant, 'model.width': float(width), 'model.stem': stem}
        size = {'data.image_size': 32 if stem == 'cifar' else 240 if variant == 'b1' else 224}
        config = with_values(base_config(), fields | size)
        if problems := check(config):
            raise ConfigError([f'{source}: it describes a network that cannot be:', *problems])
        yield config


def inverted_facts(config: ConfigDict) -> dict[str, Any]:
    """What the state dict of a configuration's encoder does not say, see `inverted.facts_of`."""
    encoder = make_encoder(config)
    assert isinstance(encoder, Inverted), f'{encoder.title} is of another family than {tuple(FAMILIES)}'
    return facts_of(encoder)
