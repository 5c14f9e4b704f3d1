"""Names of the variables in the reference's TensorFlow 1 checkpoints, and our parameters under them.

TensorFlow 1 counts layers of a kind in the order in which the program makes them: base_model/conv2d, conv2d_1, ... and
base_model/batch_normalization, batch_normalization_1, ... The two counters are independent. Facts:
google-research/simclr and its released checkpoints.
"""

from simclr_jax.interop.architecture import Path, encoder_layers
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
