"""safetensors files for PyTorch, with the module that computes the network."""

import importlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from simclr_jax.config import ConfigError
from simclr_jax.interop import inverted
from simclr_jax.interop.exported import Exported
from simclr_jax.interop.extras import needs_extra
from simclr_jax.interop.inverted import Inverted
from simclr_jax.interop.torch_files import FACTS, read_state_dict
from simclr_jax.interop.torch_inverted_network import Network as InvertedNetwork
from simclr_jax.interop.torch_layers import StateDict
from simclr_jax.interop.torch_names import encoder_names, head_names, probe_names, state_dict
from simclr_jax.interop.torch_network import Network
from simclr_jax.models.encoders import Encoder
from simclr_jax.models.resnet import ResNet

FILE = 'model.safetensors'
# Depths that torchvision and timm have as resnetN.
STOCK = {'torchvision': (18, 34, 50, 101, 152), 'timm': (18, 34, 50, 101, 152, 200)}


def facts_of(network: Exported) -> dict[str, Any]:
    """What a reader must know about a network besides its arrays."""
    encoder = network.encoder
    if isinstance(encoder, ResNet):
        own: dict[str, Any] = {
            name: getattr(encoder, name) for name in ('depth', 'pool', 'border', 'sk_ratio', 'se_ratio')
        }
    else:
        assert isinstance(encoder, Inverted), f'{encoder.title} has no form in PyTorch'
        own = inverted.facts_of(encoder)
    return {
        **own,
        'image_size': network.image_size,
        'mean': list(encoder.mean),
        'std': list(encoder.std),
        'step': network.step,
        'whole_head': network.has_whole_head,
        'head_layer': network.head_layer,
    }


def module_of(encoder: Encoder) -> str:
    """Name of the module that computes an encoder in PyTorch. It lies beside the weights."""
    return 'simclr_resnet' if isinstance(encoder, ResNet) else 'simclr_inverted'


def write(network: Exported, directory: epath.Path, library: str = '') -> None:
    """Writes model.safetensors, and the module that computes it beside it.

    Args:
        network: Network to write.
        directory: Existing directory.
        library: 'torchvision' or 'timm' for a file with their names alone, without the projection head. '': everything.

    Raises:
        ConfigError: The library has no such network, or the package safetensors is not installed.
    """
    if library:
        _check_stock(network, library)
    with needs_extra('safetensors'):
        import safetensors.numpy
    names = encoder_names(network.encoder) | (probe_names(network.encoder) if network.num_classes else {})
    if not library:
        names |= head_names(network.head_layers, is_whole=network.has_whole_head)
    metadata = {'format': 'pt', FACTS: json.dumps(facts_of(network))}
    content = safetensors.numpy.save(state_dict(network.variables, names), metadata)
    (directory / FILE).write_bytes(content)
    module = f'{module_of(network.encoder)}.py'
    (directory / module).write_bytes((epath.Path(__file__).parent / module).read_bytes())


def _check_stock(network: Exported, library: str) -> None:
    encoder, problems = network.encoder, []
    if isinstance(encoder, ResNet):
        family = 'ResNet'
        if encoder.depth not in STOCK[library]:
            problems.append(f'depth {encoder.depth}')
        problems += [f'{name} {value:g}' for name in ('sk_ratio', 'se_ratio') if (value := getattr(encoder, name)) > 0]
    else:
        family = encoder.title.partition('-')[0]
        if library == 'timm':
            raise ConfigError(
                [f"--format=timm: timm's {family} has names of its own; choose --format=torchvision or safetensors"]
            )
        if encoder.stem != 'imagenet':
            problems.append(f'stem {encoder.stem}')
    if encoder.width != 1:
        problems.append(f'width {encoder.width:g}')
    if network.head_layer:
        problems.append(f'a classifier on layer {network.head_layer} of the head')
    if problems:
        raise ConfigError(
            [f'--format={library}: {library} has no {family} with {", ".join(problems)}; choose --format=safetensors']
        )


def load(directory: epath.Path, library: str = '') -> tuple[str, Callable[[np.ndarray], dict[str, np.ndarray]]]:
    """Loads model.safetensors anew.

    Args:
        directory: Directory of the file.
        library: See `write`.

    Returns:
        What runs it: the library or else PyTorch alone where they are installed, otherwise NumPy. And the function of
        images [N, H, W, 3].
    """
    path = str(directory / FILE)
    for open_one in (*((_STOCK[library],) if library else ()), _our_module):
        try:
            return open_one(path)
        except ModuleNotFoundError:
            continue
    arrays, facts = read_state_dict(path)
    return 'NumPy', network_of(arrays, facts)


def network_of(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> StateDict:
    """The network of a state dict, computed with NumPy.

    Args:
        arrays: State dict with torchvision's names.
        facts: See `facts_of`.
    """
    return InvertedNetwork(arrays, facts) if 'encoder' in facts else Network(arrays, facts)


def _our_module(path: str) -> tuple[str, Callable[[np.ndarray], dict[str, np.ndarray]]]:
    return 'PyTorch', _function(_module(path).load(path))


def _module(path: str) -> Any:
    """The module beside the weights."""
    _, facts = read_state_dict(path)
    name = 'simclr_inverted' if 'encoder' in facts else 'simclr_resnet'
    return importlib.import_module(f'simclr_jax.interop.{name}')


def _torchvision(path: str) -> tuple[str, Callable[[np.ndarray], dict[str, np.ndarray]]]:
    try:
        import torchvision  # pyright: ignore[reportMissingImports]
    except RuntimeError as error:  # Its build does not fit that of PyTorch.
        raise ModuleNotFoundError(str(error)) from error
    module = _module(path)
    facts = module.facts(path)
    model = getattr(torchvision.models, torchvision_name(facts))(weights=None)
    return 'torchvision', _of_stock(module.adapt(model, path), facts)


def torchvision_name(facts: dict[str, Any]) -> str:
    """Name of torchvision's function that makes a network."""
    if 'encoder' not in facts:
        return f'resnet{facts["depth"]}'
    return {'efficientnet': 'efficientnet_', 'mobilenet': 'mobilenet_v3_'}[facts['encoder']] + facts['variant']


def _timm(path: str) -> tuple[str, Callable[[np.ndarray], dict[str, np.ndarray]]]:
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except RuntimeError as error:  # torchvision's build, which it imports, does not fit that of PyTorch.
        raise ModuleNotFoundError(str(error)) from error
    from simclr_jax.interop import simclr_resnet

    facts = simclr_resnet.facts(path)
    return 'timm', _of_stock(simclr_resnet.adapt(timm.create_model(f'resnet{facts["depth"]}'), path), facts)


_STOCK = {'torchvision': _torchvision, 'timm': _timm}


def _of_stock(model: Any, facts: dict[str, Any]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A stock model as a function of images in [0, 1], with the representation beside the logits."""
    import torch  # pyright: ignore[reportMissingImports]

    if hasattr(model, 'fc'):
        classify, model.fc = model.fc, torch.nn.Identity()
    else:
        classify, model.classifier[-1] = model.classifier[-1], torch.nn.Identity()
    has_classifier = isinstance(classify, torch.nn.Linear)

    def forward(images):
        if facts['mean']:
            mean, std = (images.new_tensor(facts[name]).view(1, -1, 1, 1) for name in ('mean', 'std'))
            images = (images - mean) / std
        h = model(images)
        return {'representation': h} | ({'logits': classify(h)} if has_classifier else {})

    return _function(forward)


def _function(model: Any) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    import torch  # pyright: ignore[reportMissingImports]

    def compute(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = model(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))
        return {name: values.numpy() for name, values in found.items()}

    return compute
