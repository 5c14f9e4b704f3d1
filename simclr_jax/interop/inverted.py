"""EfficientNet and MobileNetV3 under torchvision's names: features.N for convolutions, classifier.N for the rest."""

from collections.abc import Iterator
from typing import Any

from simclr_jax.models.efficientnet import EfficientNet
from simclr_jax.models.mobilenet import MobileNet

Inverted = EfficientNet | MobileNet

# Families by their name in a configuration.
FAMILIES = {'efficientnet': EfficientNet, 'mobilenet': MobileNet}
# Place of the classifier. Dropout and activation are numbered too.
CLASSIFIERS = {EfficientNet: 'classifier.1', MobileNet: 'classifier.3'}


def layers(encoder: Inverted) -> Iterator[tuple[str, str, str]]:
    """(kind, place, name) of each layer with variables, in torchvision's order.

    Args:
        encoder: Architecture.

    Yields:
        'conv', 'biased conv', 'dense' or 'norm', the layer's place such as 'stage1/block1/expand', and its name such as
        'features.1.0.block.0.0'.
    """
    yield 'conv', 'stem/conv', 'features.0.0'
    yield 'norm', 'stem/bn', 'features.0.1'
    number, channels = 0, encoder.stem_channels
    for stage, blocks in enumerate(encoder.blocks(), start=1):
        for index, block in enumerate(blocks):
            number += 1
            # EfficientNet numbers the stages and the blocks in them, MobileNetV3 all blocks.
            name = f'features.{stage}.{index}' if isinstance(encoder, EfficientNet) else f'features.{number}'
            place = f'stage{stage}/block{index + 1}'
            inner = ['expand'] * (block.expanded != channels) + ['depthwise'] + ['se'] * (block.squeeze > 0)
            for position, layer in enumerate((*inner, 'project')):
                yield from _layer(f'{place}/{layer}', f'{name}.block.{position}')
            channels = block.features
    last = len(encoder.blocks()) if isinstance(encoder, EfficientNet) else number
    yield 'conv', 'top/conv', f'features.{last + 1}.0'
    yield 'norm', 'top/bn', f'features.{last + 1}.1'
    if isinstance(encoder, MobileNet):
        yield 'dense', 'top/dense', 'classifier.0'


def _layer(place: str, name: str) -> Iterator[tuple[str, str, str]]:
    if place.endswith('/se'):
        yield 'biased conv', f'{place}/reduce', f'{name}.fc1'
        yield 'biased conv', f'{place}/expand', f'{name}.fc2'
    else:
        yield 'conv', place, f'{name}.0'
        yield 'norm', f'{place}_bn', f'{name}.1'


def facts_of(encoder: Inverted) -> dict[str, Any]:
    """What a state dict does not say about an encoder.

    Args:
        encoder: Architecture.

    Returns:
        'encoder', 'variant', 'width' and 'stem' as in a configuration. 'epsilon' of the norms. 'activation' of the
        first and the last convolution, 'inner' and 'gate' of squeeze-and-excitation. 'stem_strides'. And 'blocks', for
        each block its stride, whether it has a shortcut, and its activation.
    """
    blocks, channels = [], encoder.stem_channels
    for stage, strides in zip(encoder.blocks(), encoder.strides(), strict=True):
        for index, block in enumerate(stage):
            has_shortcut = block.strides == 1 and block.features == channels
            blocks.append([strides if index == 0 else 1, has_shortcut, block.activation])
            channels = block.features
    first = encoder.blocks()[0][0]
    return {
        'encoder': next(name for name, family in FAMILIES.items() if isinstance(encoder, family)),
        'variant': encoder.variant,
        'width': encoder.width,
        'stem': encoder.stem,
        'epsilon': encoder.batch_norm_epsilon,
        'activation': encoder.activation,
        'inner': first.inner,
        'gate': first.gate,
        'stem_strides': encoder.stem_stride,
        'blocks': blocks,
    }
