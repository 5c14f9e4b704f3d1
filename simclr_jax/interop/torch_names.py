"""Names of our variables in PyTorch: those of torchvision and timm, and further ones for what these do not have.

torchvision and timm agree on ResNets. EfficientNet and MobileNetV3 have torchvision's names, see inverted.py. In
ResNets, ResNet-D's stem and shortcut have timm's names. Squeeze-and-excitation has fc1 and fc2. Selective kernels and
the projection head have names of our own, see simclr_resnet.py.
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from simclr_jax.interop import inverted
from simclr_jax.interop.architecture import Path, Shape, encoder_layers
from simclr_jax.interop.inverted import Inverted
from simclr_jax.models.encoders import Encoder
from simclr_jax.models.resnet import ResNet

_NORM = {
    'weight': ('params', 'scale'),
    'bias': ('params', 'bias'),
    'running_mean': ('batch_stats', 'mean'),
    'running_var': ('batch_stats', 'var'),
}
_STEM = {'conv': 'conv1', 'bn': 'bn1'}
_STEM_D = {'conv1': 'conv1.0', 'bn1': 'conv1.1', 'conv2': 'conv1.3', 'bn2': 'conv1.4', 'conv3': 'conv1.6', 'bn3': 'bn1'}
_SHORTCUT = {'shortcut_conv': 'downsample.0', 'shortcut_bn': 'downsample.1'}
# ResNet-D averages before the convolution of the shortcut.
_SHORTCUT_D = {'shortcut_conv': 'downsample.1', 'shortcut_bn': 'downsample.2'}
_EXCITATION = {'se/reduce': 'se.fc1', 'se/expand': 'se.fc2'}
# A counter that PyTorch keeps in each norm, and that no network uses.
COUNTER = 'num_batches_tracked'


def encoder_names(encoder: Encoder) -> dict[str, Path]:
    """Name in a state dict -> our path, for every variable of an encoder.

    Args:
        encoder: Architecture.
    """
    found = {}
    for kind, place, name in _layers(encoder):
        path = 'encoder', *place.split('/')
        if kind == 'norm':
            found |= _norm_names(name, path)
        else:
            found[f'{name}.weight'] = ('params', *path, 'kernel')
            if kind in ('biased conv', 'dense'):
                found[f'{name}.bias'] = ('params', *path, 'bias')
    return found


def _layers(encoder: Encoder) -> Iterator[tuple[str, str, str]]:
    """(kind, place, name in a state dict) of each layer of an encoder."""
    if isinstance(encoder, ResNet):
        return ((kind, place, _layer(encoder, place)) for kind, place in encoder_layers(encoder))
    assert isinstance(encoder, Inverted), f'{encoder.title} has no names in PyTorch'
    return inverted.layers(encoder)


def _layer(encoder: ResNet, place: str) -> str:
    """Name of a layer, such as 'layer1.0.conv1' of 'stage1/block1/conv1'."""
    first, _, rest = place.partition('/')
    if first == 'stem':
        return (_STEM | _STEM_D if encoder.stem == 'imagenet' and encoder.sk_ratio > 0 else _STEM)[rest]
    block, _, layer = rest.partition('/')
    named = (_SHORTCUT_D if encoder.sk_ratio > 0 else _SHORTCUT) | _EXCITATION
    layer = named.get(layer, layer.replace('sk/', 'conv2.'))
    return f'layer{first.removeprefix("stage")}.{int(block.removeprefix("block")) - 1}.{layer}'


def head_names(layers: int, *, is_whole: bool) -> dict[str, Path]:
    """Name in a state dict -> our path, for every variable of a projection head.

    Args:
        layers: Number of layers, 0 or more.
        is_whole: Whether the last of them is the last of the head, whose norm has no offset.
    """
    found = {}
    for number in range(1, layers + 1):
        found[f'head.dense{number}.weight'] = ('params', 'head', f'dense{number}', 'kernel')
        found |= _norm_names(f'head.bn{number}', ('head', f'bn{number}'))
    if is_whole:
        found.pop(f'head.bn{layers}.bias', None)
    return found


def classifier_name(encoder: Encoder) -> str:
    """Name of the linear classifier behind an encoder in a state dict."""
    return inverted.CLASSIFIERS[type(encoder)] if isinstance(encoder, Inverted) else 'fc'


def probe_names(encoder: Encoder) -> dict[str, Path]:
    """Name in a state dict -> our path, for the variables of the linear classifier behind an encoder."""
    name = classifier_name(encoder)
    return {f'{name}.weight': ('params', 'probe', 'kernel'), f'{name}.bias': ('params', 'probe', 'bias')}


def _norm_names(name: str, path: Path) -> dict[str, Path]:
    return {f'{name}.{theirs}': (tree, *path, ours) for theirs, (tree, ours) in _NORM.items()}


def to_torch(array: np.ndarray) -> np.ndarray:
    """A variable in PyTorch's layout: kernels HWIO -> OIHW, dense weights [in, out] -> [out, in]."""
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
    return np.ascontiguousarray(array.transpose(order)) if order else array


def from_torch(array: np.ndarray) -> np.ndarray:
    """A variable in our layout: kernels OIHW -> HWIO, dense weights [out, in] -> [in, out]."""
    order = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
    return np.ascontiguousarray(array.transpose(order)) if order else array


def torch_shape(shape: Shape) -> Shape:
    """Shape in PyTorch's layout of a variable with this shape in ours."""
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1] if len(shape) == 2 else shape


def state_dict(variables: Mapping[Path, np.ndarray], names: Mapping[str, Path]) -> dict[str, np.ndarray]:
    """A state dict as PyTorch has it.

    Args:
        variables: Our variables by their path, float32.
        names: Name in the state dict -> our path.

    Returns:
        The variables in PyTorch's layout, float32. Each norm has an offset and a counter too (int64, 0).
    """
    found = {name: to_torch(np.asarray(variables[path], np.float32)) for name, path in names.items()}
    for name in names:
        if name.endswith('.running_mean'):
            norm = name.removesuffix('.running_mean')
            found.setdefault(f'{norm}.bias', np.zeros_like(found[name]))
            found[f'{norm}.{COUNTER}'] = np.zeros((), np.int64)
    return found


def numbered_layers(names: Mapping[str, object]) -> dict[str, str]:
    """Names of the layers of a ResNet whose children are numbered (`nn.Sequential`), such as lightly's backbones.

    Args:
        names: State dict.

    Returns:
        Number -> 'conv1', 'bn1', 'layer1', ... Empty if these are no numbered layers of a ResNet.
    """
    stages = sorted({int(found[1]) for name in names if (found := re.match(r'(\d{1,4})\.0\.conv1\.weight$', name))})
    if not stages or '0.weight' not in names:
        return {}
    return {'0': 'conv1', '1': 'bn1'} | {str(place): f'layer{number}' for number, place in enumerate(stages, start=1)}
