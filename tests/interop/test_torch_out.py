"""torchvision, timm and PyTorch compute what our networks compute, from the files that we export."""

import jax
import numpy as np
import pytest
from flax import traverse_util

pytest.importorskip('torch', reason='PyTorch is not installed, and never required')
pytest.importorskip('safetensors', reason="needs pip install 'simclr_jax[export]'")

import torch
from etils import epath

from simclr_jax.cli.main import main
from simclr_jax.interop import simclr_resnet, torch_out
from simclr_jax.interop.torch_in import read_torch
from simclr_jax.networks import make_model
from support.runs import assert_same_bits
from support.weights import images_by_rule, random_network, share, write_run


def stock(library, depth):
    """A model of torchvision or timm."""
    try:
        module = pytest.importorskip(library)
    except RuntimeError as error:
        pytest.skip(f'{library} does not fit PyTorch: {error}')
    if library == 'timm':
        return module.create_model(f'resnet{depth}')
    return getattr(module.models, f'resnet{depth}')()


def logits_of(model, images):
    with torch.no_grad():
        return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


@pytest.mark.slow
@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('library', ['torchvision', 'timm'])
def test_stock_models_with_the_exact_max_pool(tmp_path, library, depth):
    """Without it, torchvision's own padding is right at odd maps only. 97 pixels have one."""
    network = random_network({'model.depth': depth, 'data.image_size': 224, 'head.kind': 'none'}, classes=10)
    torch_out.write(network, epath.Path(tmp_path), library)
    path = str(tmp_path / torch_out.FILE)
    model = simclr_resnet.adapt(stock(library, depth), path)
    exact = model.maxpool
    for side in (224, 64, 97):
        images = images_by_rule(2, side, side)
        expected = network.outputs(images)['logits']
        assert share(logits_of(model, images), expected) < 1e-5
        model.maxpool = torch.nn.MaxPool2d(3, 2, 1)
        shifted = share(logits_of(model, images), expected)
        assert shifted < 1e-5 if side == 97 else shifted > 1e-3
        model.maxpool = exact
    runner, compute = torch_out.load(epath.Path(tmp_path), library)
    assert runner == library
    assert share(compute(images)['representation'], network.outputs(images)['representation']) < 1e-5


def as_trained(network, images):
    """Logits in training mode."""
    model = make_model(network.config, network.num_classes)
    variables = traverse_util.unflatten_dict(network.variables)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=['batch_stats'])[0]['logits'])
    return jax.device_get(apply(variables, images))


@pytest.mark.slow
@pytest.mark.parametrize('depth', [18, 50])
def test_a_stock_model_becomes_ours_and_comes_back(tmp_path, depth):
    """From torchvision's own weights: its outputs. Exported again: its state dict, bit for bit."""
    model = stock('torchvision', depth).eval()
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    torch.save({'state_dict': model.state_dict(), 'epoch': 3}, tmp_path / 'model.pth')
    found = read_torch(str(tmp_path / 'model.pth'), weights='', normalize=((), ()), pool='')
    network = random_network({}, config=found.config, variables=found.variables, image_size=224)
    for side in (224, 64, 97):
        images = images_by_rule(2, side, side)
        assert share(network.outputs(images)['logits'], logits_of(model, images)) < 1e-5
    ours = as_trained(network, images)
    with torch.no_grad():
        model.train()
        theirs = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
        model.eval()
    assert share(ours, theirs) < 1e-3  # batch statistics of two images magnify roundings
    torch_out.write(network, epath.Path(tmp_path), 'torchvision')
    again = read_torch(str(tmp_path / torch_out.FILE), weights='', normalize=None, pool='')
    assert_same_bits(again.variables, found.variables)
    state = {name: values.numpy() for name, values in before.items()}
    written = torch_out.read_state_dict(str(tmp_path / torch_out.FILE))[0]
    for name, values in state.items():
        np.testing.assert_array_equal(written[name], values)


def test_the_command_computes_with_pytorch(tmp_path, capsys):
    path = write_run(random_network(), tmp_path / 'run')
    assert main(['export', f'--workdir={path}', '--format=safetensors', f'--out={tmp_path}/out']) == 0
    assert 'computed fixed images with PyTorch' in capsys.readouterr().out
    model = simclr_resnet.load(str(tmp_path / 'out' / 'model.safetensors'))
    images = images_by_rule(2, 64, 64)
    maps = model.maps(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    assert [tuple(found.shape[1:]) for found in maps] == [(8, 16, 16), (8, 16, 16), (16, 8, 8)]
