"""EfficientNet and MobileNetV3 come in from state dicts, and torchvision computes what ours do."""

import numpy as np
import pytest

pytest.importorskip('safetensors', reason="needs pip install 'simclr_jax[export]'")

import safetensors.numpy
from etils import epath

from simclr_jax.config import ConfigError
from simclr_jax.interop import torch_out
from simclr_jax.interop.torch_in import read_torch
from support.runs import assert_same_bits
from support.weights import images_by_rule, random_network, share, torch_state_dict

NONE = ((), ())
READ = {'weights': '', 'normalize': NONE, 'pool': ''}
VARIANTS = [('efficientnet', 'b0'), ('efficientnet', 'b1'), ('mobilenet', 'large'), ('mobilenet', 'small')]


def network_of(encoder, variant, width, **fields):
    named = {'model.encoder': encoder, 'model.variant': variant, 'model.width': width, 'data.image_size': 224}
    return random_network(named | {'head.kind': 'none'} | fields)


def save(path, arrays):
    path.write_bytes(safetensors.numpy.save({name: np.array(a, order='C') for name, a in arrays.items()}))
    return str(path)


SLOW = [pytest.param(*names, marks=pytest.mark.slow) for names in VARIANTS[:3]]


@pytest.mark.parametrize('encoder, variant', [*SLOW, VARIANTS[3]])
def test_variant_and_width_are_found_by_names_and_shapes(tmp_path, encoder, variant):
    network = network_of(encoder, variant, 0.5)
    arrays = {f'module.{name}': array for name, array in torch_state_dict(network, head=False).items()}
    found = read_torch(save(tmp_path / 'model.safetensors', arrays), **READ)
    model = found.config.model
    assert (model.encoder, model.variant, model.width, found.num_classes) == (encoder, variant, 0.5, 5)
    assert_same_bits(found.variables, network.variables)


def test_what_the_file_says_comes_back_and_computes_the_same(tmp_path):
    """Also what no shape tells: the stem for small images, and the heads."""
    fields = {'model.stem': 'cifar', 'data.image_size': 32, 'head.kind': 'nonlinear', 'head.layers': 2}
    network = network_of('mobilenet', 'small', 0.125, **fields)
    torch_out.write(network, epath.Path(tmp_path))
    found = read_torch(str(tmp_path / torch_out.FILE), weights='', normalize=None, pool='')
    assert (found.config.model.stem, found.config.model.width) == ('cifar', 0.125)
    assert_same_bits(found.variables, network.variables)
    assert max(found.check().values()) < 1e-5


@pytest.mark.parametrize(
    'changed, options, message',
    [
        ({}, {'normalize': None}, 'does not say how its images were normalised'),
        ({}, {'pool': 'same'}, '--pool=same: .* holds no ResNet; leave this out'),
        (
            {'features.2.block.0.0.weight': None, 'features.0.0.weight': np.zeros((7, 3, 3, 3), np.float32)},
            {},
            r'\[7, 3, 3, 3\], \[16, 3, 3, 3\] is expected.*features.2.block.0.0.weight: missing, \[72, 16, 1, 1\]',
        ),
    ],
)
def test_what_does_not_fit_is_listed(tmp_path, changed, options, message):
    arrays = torch_state_dict(network_of('mobilenet', 'small', 1.0), head=False) | changed
    source = save(tmp_path / 'model.safetensors', {name: a for name, a in arrays.items() if a is not None})
    with pytest.raises(ConfigError, match=f'(?s){message}'):
        read_torch(source, **{**READ, **options})


@pytest.mark.slow
@pytest.mark.parametrize('encoder, variant', VARIANTS)
def test_torchvision_computes_what_ours_do(tmp_path, encoder, variant):
    """In both directions, with every name of the state dict."""
    torch = pytest.importorskip('torch', reason='PyTorch is not installed, and never required')
    models = pytest.importorskip('torchvision').models
    network = network_of(encoder, variant, 1.0)
    torch_out.write(network, epath.Path(tmp_path), 'torchvision')
    arrays, facts = torch_out.read_state_dict(str(tmp_path / torch_out.FILE))
    model = getattr(models, torch_out.torchvision_name(facts))(num_classes=5).eval()
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, strict=True)
    runner, compute = torch_out.load(epath.Path(tmp_path), 'torchvision')
    assert runner == 'torchvision'
    for side in (64, 65):
        images = images_by_rule(2, side, side)
        expected = network.outputs(images)
        with torch.no_grad():
            found = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
        # Logits of random weights are small differences of large numbers: 2e-5 of float32's rounding.
        assert share(found, expected['logits']) < 1e-4
        assert share(compute(images)['representation'], expected['representation']) < 1e-5
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    assert_same_bits(read_torch(str(tmp_path / 'model.pth'), **READ).variables, network.variables)
