"""EfficientNet and MobileNetV3 under torchvision's names: features.N for convolutions, classifier.N for the rest."""

from collections.abc import Iterator

from simclr_jax.models.efficientnet import EfficientNet
from simclr_jax.models.mobilenet import MobileNet

Inverted = EfficientNet | MobileNet

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
