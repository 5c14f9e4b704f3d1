"""Names of the variables in the reference's TensorFlow 1 checkpoints, and our parameters under them.

TensorFlow 1 counts layers of a kind in the order in which the program makes them: base_model/conv2d, conv2d_1, ... and
base_model/batch_normalization, batch_normalization_1, ... The two counters are independent. Facts:
google-research/simclr and its released checkpoints.
"""

from collections.abc import Iterator

from simclr_jax.interop.architecture import Path
from simclr_jax.models.resnet import ResNet

# The parts of a checkpoint that may hold an encoder: the weights of the last step, and their moving average.
BASE, EMA = 'base_model', 'ema_model/base_model'
# Place of the supervised head.
PROBE = 'head_supervised/linear_layer/dense'

_NORM = {
    'gamma': ('params', 'scale'),
    'beta': ('params', 'bias'),
    'moving_mean': ('batch_stats', 'mean'),
    'moving_variance': ('batch_stats', 'var'),
}


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
            if block == 1:
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


def encoder_names(encoder: ResNet, part: str = BASE) -> dict[str, Path]:
    """Name in the checkpoint -> our path, for every variable of an encoder.

    Args:
        encoder: Architecture.
        part: BASE or EMA.
    """
    found, convs, norms = {}, 0, 0
    for kind, place in encoder_layers(encoder):
        path = ('encoder', *place.split('/'))
        if kind == 'norm':
            found |= _norm_names(f'{part}/{numbered("batch_normalization", norms)}', path)
            norms += 1
            continue
        name = f'{part}/{numbered("conv2d", convs)}'
        convs += 1
        for variable in ('kernel', 'bias') if kind == 'biased conv' else ('kernel',):
            found[f'{name}/{variable}'] = ('params', *path, variable)
    return found


def head_names(kind: str, layers: int, part: str = BASE) -> dict[str, Path]:
    """Name in the checkpoint -> our path, for every variable of a projection head.

    Args:
        kind: 'nonlinear', 'linear' or 'none'.
        layers: Number of layers of the nonlinear head.
        part: BASE or EMA, the part of the encoder.
    """
    prefix = head_prefix(part)
    places = {'nonlinear': [f'nl_{number}' for number in range(layers)], 'linear': ['l_0'], 'none': []}[kind]
    found = {}
    for number, place in enumerate(places, start=1):
        found[f'{prefix}{place}/dense/kernel'] = ('params', 'head', f'dense{number}', 'kernel')
        names = _norm_names(f'{prefix}{place}/batch_normalization', ('head', f'bn{number}'))
        is_last = number == len(places)
        found |= {name: path for name, path in names.items() if not (is_last and name.endswith('/beta'))}
    return found


def probe_names() -> dict[str, Path]:
    """Name in the checkpoint -> our path, for the variables of the supervised head."""
    return {f'{PROBE}/{variable}': ('params', 'probe', variable) for variable in ('kernel', 'bias')}


def _norm_names(name: str, path: Path) -> dict[str, Path]:
    return {f'{name}/{theirs}': (tree, *path, ours) for theirs, (tree, ours) in _NORM.items()}


def head_prefix(part: str) -> str:
    """Beginning of the names of a projection head's variables.

    Args:
        part: BASE or EMA, the part of the encoder.
    """
    return part.removesuffix('base_model') + 'head_contrastive/'


def numbered(name: str, number: int) -> str:
    """The name that TensorFlow gives to the layer that comes after `number` others of its kind."""
    return f'{name}_{number}' if number else name
