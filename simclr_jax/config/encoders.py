"""Fields of the encoder, and which of them each family has."""

import math

from ml_collections import ConfigDict

from simclr_jax.config.fields import BELOW_ONE, NATURAL, POSITIVE, SHARE, Field

_COLOURS = (
    'empty or three finite numbers',
    lambda value: not value or (len(value) == 3 and all(map(math.isfinite, value))),
)
_DEVIATIONS = ('empty or three finite numbers > 0', lambda value: _COLOURS[1](value) and all(x > 0 for x in value))


# Variants of each encoder, the default first. A ResNet has its depth instead.
VARIANTS: dict[str, tuple[str, ...]] = {'resnet': (), 'efficientnet': ('b0', 'b1'), 'mobilenet': ('large', 'small')}
# Number of stages that model.remat may name, by encoder or variant.
_STAGES = {'resnet': 4, 'efficientnet': 7, 'large': 6, 'small': 5}
# Fields of single encoders. The depth is not among them: recipes set it, and another encoder does not read it.
_OF_RESNET = ('pool', 'border', 'first_shortcut', 'sk_ratio', 'se_ratio')
_OF_OTHERS = ('variant', 'stochastic_depth', 'dropout')

MODEL_FIELDS = (
    Field('model.encoder', 'resnet', 'Family of the encoder.', choices=tuple(VARIANTS)),
    Field(
        'model.variant',
        '',
        "efficientnet: b0 or b1. mobilenet: large or small. '': the first of them.",
        choices=('', *(variant for variants in VARIANTS.values() for variant in variants)),
    ),
    Field(
        'model.depth',
        50,
        'resnet: layers. Other encoders do not read it. For tests: 6 (two stages of one block) and 10 (four).',
        choices=(6, 10, 18, 34, 50, 101, 152, 200),
    ),
    Field('model.width', 1.0, 'Factor on all channel counts, also fractions.', POSITIVE),
    Field(
        'model.stem',
        'auto',
        'First layers: for small images (cifar) or large ones. auto: cifar for image_size <= 32.',
        choices=('auto', 'cifar', 'imagenet'),
    ),
    Field(
        'model.pool',
        'same',
        "resnet: padding of the large stem's max pooling: as in TensorFlow (same) or as in PyTorch (symmetric).",
        choices=('same', 'symmetric'),
    ),
    Field('model.mean', (), 'Mean of each colour, which the network subtracts. Empty: none.', _COLOURS, of=float),
    Field(
        'model.std', (), 'Deviation of each colour, which the network divides by. Empty: none.', _DEVIATIONS, of=float
    ),
    Field(
        'model.border',
        0,
        "resnet: pixels of zeros around the images. solo-learn's networks for small images: 1.",
        NATURAL,
    ),
    Field(
        'model.first_shortcut',
        'projection',
        'resnet: first shortcut of stage 1 in depths below 50: a convolution, or the identity as in PyTorch.',
        choices=('projection', 'identity'),
    ),
    Field('model.sk_ratio', 0.0, 'resnet: ratio of the selective kernels, 0.0625 in SimCLRv2. 0: none.', SHARE),
    Field('model.se_ratio', 0.0, 'resnet: ratio of squeeze-and-excitation, usually 0.25. 0: none.', SHARE),
    Field(
        'model.stochastic_depth',
        0.0,
        'efficientnet, mobilenet: chance of the last block to be left out for an image. 0: off. EfficientNet: 0.2.',
        BELOW_ONE,
    ),
    Field(
        'model.dropout',
        0.0,
        "efficientnet, mobilenet: share of the representation's values that training makes 0. Published: 0.2.",
        BELOW_ONE,
    ),
    Field(
        'model.dtype',
        'float32',
        'Type of the computation. State and loss are always float32.',
        choices=('float32', 'bfloat16'),
    ),
    Field(
        'model.remat',
        (),
        'Stages that the backward pass recomputes. This saves memory and costs time.',
        ('numbers of stages, from 1', lambda value: all(stage >= 1 for stage in value)),
        of=int,
    ),
)
_DEFAULTS = {field.name.removeprefix('model.'): field.default for field in MODEL_FIELDS}


def check_encoders(model: ConfigDict) -> list[str]:
    """Returns a message for each pair of fields of the group `model` that do not fit together."""
    problems = _check_family(model)
    if model.sk_ratio > 0 and model.se_ratio > 0:
        problems.append(
            f'model.sk_ratio={model.sk_ratio}, model.se_ratio={model.se_ratio}: '
            'at most one may be above 0; set the other to 0'
        )
    if model.encoder == 'resnet' and model.sk_ratio > 0 and model.depth < 50:
        problems.append(
            f'model.sk_ratio={model.sk_ratio}: needs bottleneck blocks; set model.depth >= 50, or sk_ratio to 0'
        )
    if len(model.mean) != len(model.std):
        problems.append(f'model.mean={model.mean}, model.std={model.std}: set both or neither')
    return problems


def _check_family(model: ConfigDict) -> list[str]:
    """Messages about fields that the chosen encoder does not have."""
    if model.encoder not in VARIANTS:
        return []
    variants = VARIANTS[model.encoder]
    others = _OF_OTHERS if model.encoder == 'resnet' else _OF_RESNET
    problems = [
        f'model.{name}={model[name]}: model.encoder={model.encoder} does not have this field; set it to its default '
        f'{_DEFAULTS[name]!r}'
        for name in others
        if model[name] != _DEFAULTS[name]
    ]
    if model.variant and variants and model.variant not in variants:
        problems.append(
            f'model.variant={model.variant}: model.encoder={model.encoder} has {", ".join(variants)}; choose one of '
            'them'
        )
        return problems
    stages = _STAGES.get(model.variant or next(iter(variants), '')) or _STAGES[model.encoder]
    if max(model.remat, default=0) > stages:
        problems.append(f'model.remat={model.remat}: must be stages from 1 to {stages}, for example (1, 2)')
    return problems
