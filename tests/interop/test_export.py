"""Exported files compute what our network computes, in other programs."""

import contextlib
import functools
import io
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip('onnx', reason="needs pip install 'simclr_jax[export]'")

from etils import epath

from simclr_jax.cli.main import main
from simclr_jax.config import ConfigError
from simclr_jax.interop import onnx_out, stablehlo, torch_out
from simclr_jax.interop.export import FORMATS, compare, export
from simclr_jax.interop.exported import open_exported
from simclr_jax.interop.imported import CheckError, fixed_images
from simclr_jax.models.classifier import Classifier
from simclr_jax.networks import make_model
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.state import TrainState
from support.weights import SMALL, TINY, random_network, random_variables, share, write_run

MODULES = {'safetensors': torch_out, 'onnx': onnx_out, 'stablehlo': stablehlo}
INPUTS = {'model.mean': (0.4, 0.5, 0.6), 'model.std': (0.2, 0.3, 0.4), 'model.pool': 'symmetric'}


def module_of(kind):
    if kind != 'saved_model':
        return MODULES[kind]
    pytest.importorskip('tensorflow')
    from simclr_jax.interop import saved_model

    return saved_model


def assert_computes_the_same(network, compute, sides, counts=(1, 7)):
    """A loaded file on batches of several sizes, with odd and even maps."""
    for side in sides:
        images = np.concatenate([fixed_images(side, side), fixed_images(side, side)[::-1] / 2] * 2)
        expected = network.outputs(images)
        for count in counts:
            found = compute(images[:count])
            assert found.keys() == expected.keys()
            for name, values in found.items():
                assert share(values, expected[name][:count]) < 1e-5, name


def written(network, kind, directory):
    """The function of a file that was written and loaded anew."""
    module_of(kind).write(network, epath.Path(directory))
    return module_of(kind).load(epath.Path(directory))[1]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Work directory of a random network, and the network."""
    network = random_network(TINY)
    return write_run(network, tmp_path_factory.mktemp('run') / 'run'), network


@pytest.fixture(scope='module', params=['safetensors', 'onnx', 'stablehlo', 'saved_model'])
def exported(request, run, tmp_path_factory):
    """(format, directory, what the command printed) of an exported run."""
    kind, out = request.param, tmp_path_factory.mktemp('exports') / request.param
    module_of(kind)
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert main(['export', f'--workdir={run[0]}', f'--format={kind}', f'--out={out}']) == 0
    return kind, out, told.getvalue()


def test_the_command_says_how_far_the_file_is_off(exported):
    for name in ('representation', 'projection', 'logits'):
        assert float(re.search(rf'{name}: largest difference (\S+)', exported[2])[1]) < 1e-5


def test_batches_of_any_size(run, exported):
    kind, out, _ = exported
    _, compute = module_of(kind).load(epath.Path(out))
    assert_computes_the_same(run[1], compute, (64,) if kind == 'stablehlo' else (64, 65))


WITHOUT_JAX = """
import sys
sys.modules['jax'] = sys.modules['simclr_jax'] = None
{lines}
import numpy as np
images = np.load('{place}/images.npy')
for count in (1, 7):
    found = model(tf.constant(images[:count]), trainable=False)
    np.savez(f'{place}/{{count}}.npz', **{{name: values.numpy() for name, values in found.items()}})
"""


def assert_runs_without_jax(network, out, lines, place):
    """TensorFlow alone loads a SavedModel, in a process that cannot import JAX, and computes the same."""
    images = np.concatenate([fixed_images(64, 64)] * 4)[:7]
    np.save(place / 'images.npy', images)
    code = WITHOUT_JAX.format(lines=lines, place=place)
    done = subprocess.run([sys.executable, '-c', code], cwd=out, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = network.outputs(images)
    theirs = {'representation': 'final_avg_pool', 'projection': 'proj_head_output', 'logits': 'logits_sup'}
    for count in (1, 7):
        with np.load(place / f'{count}.npz') as found:
            for ours, name in theirs.items():
                assert share(found[name], expected[ours][:count]) < 1e-5


def test_the_lines_of_the_card_load_it(run, exported, tmp_path):
    kind, out, _ = exported
    card = (out / 'README.md').read_text()
    assert '| encoder | ResNet-6, width 0.125, stem imagenet' in card
    assert 'RGB images' in card
    lines = re.search(r'```python\n(.*?)```', card, re.DOTALL)[1]
    if kind == 'safetensors':
        pytest.importorskip('torch')
    if kind == 'saved_model':
        assert_runs_without_jax(run[1], out, lines, tmp_path)
        return
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out)
        patch.setattr(sys, 'path', [str(out), *sys.path])
        exec(lines, found)
    assert len(found['outputs']) == 3


INVERTED = {
    **{'model.width': 0.125, 'model.stem': 'cifar', 'data.image_size': 32},
    **{'model.mean': INPUTS['model.mean'], 'model.std': INPUTS['model.std']},
}
NETWORKS = {
    'small images': SMALL | {'model.border': 1},
    'normalised': TINY | INPUTS | {'model.first_shortcut': 'identity'},
    'MobileNetV3': INVERTED | {'model.encoder': 'mobilenet', 'model.variant': 'small'},
    'squeeze-and-excitation': SMALL | {'model.se_ratio': 0.25, 'head.kind': 'linear'},
}


@pytest.mark.parametrize('name', NETWORKS)
def test_every_kind_of_network(tmp_path, name):
    network = random_network(NETWORKS[name])
    for kind in ('safetensors', 'onnx'):
        assert_computes_the_same(network, written(network, kind, tmp_path), (network.image_size,), counts=(2,))


def test_onnx_without_its_runtime(run, tmp_path, monkeypatch):
    """The check then computes with the reference implementation of ONNX."""
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    check = export(run[0], 'onnx', str(tmp_path / 'out'))
    assert check.runner == "onnx's reference"
    assert max(check.differences.values()) < 1e-5


def test_a_network_without_heads(tmp_path):
    network = random_network(SMALL | {'head.kind': 'none'}, classes=0)
    assert list(network.outputs(fixed_images(32, 32))) == ['representation']
    for kind in ('safetensors', 'onnx'):
        assert_computes_the_same(network, written(network, kind, tmp_path), (32,), counts=(2,))


BIG = {
    'ResNet-18': {'model.depth': 18, 'data.image_size': 224},
    'ResNet-50': {'model.depth': 50, 'data.image_size': 64},
    'selective kernels': {'model.depth': 50, 'model.sk_ratio': 0.0625, 'model.width': 0.25, 'data.image_size': 64},
}


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['safetensors', 'onnx', 'stablehlo', 'saved_model'])
@pytest.mark.parametrize('name', BIG)
def test_published_networks(tmp_path, name, kind):
    """Random selective kernels magnify roundings of float32. The file is then as near to float64 as our float32."""
    network = random_network(BIG[name])
    if 'model.sk_ratio' not in BIG[name]:
        sides = (network.image_size,) if kind == 'stablehlo' else (64, 97)
        assert_computes_the_same(network, written(network, kind, tmp_path), sides)
        return
    shape = (64, 64) if kind == 'stablehlo' else None
    check = compare(network, kind, written(network, kind, tmp_path), shape)
    assert max(check.differences.values()) <= check.limit


@pytest.mark.parametrize('exported', ['saved_model'], indirect=True)
def test_a_saved_model_returns_the_references_dictionary(exported):
    tf = pytest.importorskip('tensorflow')
    loaded = tf.saved_model.load(str(exported[1]))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    found = loaded(tf.constant(pixels), trainable=False)
    groups = {f'block_group{number}' for number in (1, 2)}
    heads = {'final_avg_pool', 'proj_head_output', 'logits_sup'}
    assert found.keys() == {'initial_conv', 'initial_max_pool'} | groups | heads
    floats = loaded(tf.constant(pixels / np.float32(255)))
    for name, values in found.items():
        np.testing.assert_allclose(values, floats[name], rtol=1e-5, atol=1e-5)
    served = loaded.signatures['uint8'](images=tf.constant(pixels))
    assert share(served['logits_sup'], found['logits_sup']) < 1e-5
    # initial_conv is before batch norm, as in the reference.
    assert float(tf.reduce_min(found['initial_conv'])) < 0 <= float(tf.reduce_min(found['initial_max_pool']))


def write_classifier(run, head_layer, classes=3):
    """A fine-tuned classifier as an evaluation keeps it. Returns its directory, and its function of images."""
    path, network = run
    model = make_model(network.config, 0)
    classifier = Classifier(model.encoder, model.head, classes, head_layer)
    draw = functools.partial(classifier.init, train=False)
    shapes = jax.eval_shape(draw, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    variables = random_variables(shapes, seed=head_layer)
    directory = epath.Path(path) / 'trained' / f'finetune-{head_layer}'
    directory.mkdir(parents=True, exist_ok=True)
    facts = {'of': 'simclr digits 10%', 'images': 'digits (10% of the labels) (143)', 'image_size': 64}
    settings = {'protocol': 'finetune', **facts, 'settings': {'head_layer': head_layer}}
    (directory / 'settings.json').write_text(json.dumps(settings))
    checkpoints = Checkpoints(str(directory))
    state = TrainState(jnp.int32(9), **variables, opt_state=optax.sgd(0.1).init({}))
    checkpoints.save(jax.device_put(state))
    checkpoints.close()
    return str(directory), functools.partial(jax.jit(functools.partial(classifier.apply, train=False)), variables)


@pytest.mark.parametrize('kind, head_layer', [('safetensors', 1), ('onnx', 2)])
def test_a_fine_tuned_classifier(run, tmp_path, kind, head_layer):
    directory, logits_of = write_classifier(run, head_layer)
    check = export(directory, kind, str(tmp_path / 'out'))
    assert set(check.differences) == {'representation', 'logits'} | ({'projection'} if head_layer == 2 else set())
    _, compute = module_of(kind).load(epath.Path(tmp_path / 'out'))
    images = fixed_images(64, 64)
    assert share(compute(images)['logits'], logits_of(images)) < 1e-5
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert card.startswith('# ResNet-6, fine-tuned as a classifier')
    assert '| start | converted from random |' in card
    assert '| learnt from | digits (10% of the labels) (143) |' in card


def test_several_classifiers_are_refused(run, tmp_path, capsys):
    directory, _ = write_classifier(run, 0)
    settings = epath.Path(directory) / 'settings.json'
    good = settings.read_text()
    for text, message in (
        (good.replace('finetune', 'multihead'), 'multihead trains no single classifier'),
        (good.replace('64', '"large"'), 'settings.json is damaged'),
        ('[]', 'settings.json is damaged'),
        (good.replace('"head_layer": 0', '"head_layer": 9'), 'the checkpoint has no layer 9 of the head'),
    ):
        settings.write_text(text)
        assert main(['export', f'--workdir={directory}', '--format=onnx', f'--out={tmp_path}/out']) == 2
        assert message in capsys.readouterr().err


def test_a_file_that_computes_something_else_is_not_kept(run, tmp_path, capsys, monkeypatch):
    """A max pooling that is shifted by a pixel."""
    right = onnx_out._Operations.max_pool
    monkeypatch.setattr(onnx_out._Operations, 'max_pool', lambda self, x, pool: right(self, x, 'symmetric'))
    assert main(['export', f'--workdir={run[0]}', '--format=onnx', f'--out={tmp_path}/out']) == 1
    assert 'onnxruntime computes something else from the file than our network' in capsys.readouterr().out
    assert not (tmp_path / 'out').exists()


def test_constant_features_are_an_error(tmp_path):
    network = random_network(SMALL)
    zeros = {path: 0 * values for path, values in network.variables.items()}
    path = write_run(random_network(SMALL, variables=zeros), tmp_path / 'run')
    with pytest.raises(CheckError, match='two different images have the same features'):
        export(path, 'onnx', str(tmp_path / 'out'))


@pytest.mark.parametrize('library', ['torchvision', 'timm'])
def test_other_networks_are_no_stock_models(run, tmp_path, capsys, library):
    assert main(['export', f'--workdir={run[0]}', f'--format={library}', f'--out={tmp_path}/out']) == 2
    told = ' '.join(capsys.readouterr().err.split())
    assert f'{library} has no ResNet with depth 6, width 0.125; choose --format=safetensors' in told


@pytest.mark.parametrize('place', ['here', 'link'])
def test_an_empty_directory_is_filled(run, tmp_path, monkeypatch, place):
    """The directory of the shell, or a link to one, stays in its place."""
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'disk')
    monkeypatch.chdir(tmp_path / 'disk')
    out = {'here': '.', 'link': f'{tmp_path}/link'}[place]
    assert main(['export', f'--workdir={run[0]}', '--format=onnx', f'--out={out}']) == 0
    assert {path.name for path in (tmp_path / 'disk').iterdir()} == {'model.onnx', 'README.md'}


def test_weights_of_more_than_two_gibibytes(run, tmp_path, monkeypatch, capsys):
    """ONNX keeps them in a file of their own. StableHLO cannot hold them."""
    monkeypatch.setattr(onnx_out, '_MOST_INSIDE', 1000)
    monkeypatch.setattr(stablehlo, '_MOST', 1000)
    check = export(run[0], 'onnx', str(tmp_path / 'out'))
    assert max(check.differences.values()) < 1e-5
    assert (tmp_path / 'out' / 'model.onnx.data').stat().st_size > 10_000
    assert main(['export', f'--workdir={run[0]}', '--format=stablehlo', f'--out={tmp_path}/hlo']) == 2
    assert 'choose --format=safetensors, onnx or saved_model' in ' '.join(capsys.readouterr().err.split())


def test_nothing_is_overwritten(run, tmp_path, capsys):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'mine').write_text('mine')
    assert main(['export', f'--workdir={run[0]}', '--format=onnx', f'--out={tmp_path}/out']) == 2
    assert 'it exists; choose another directory' in capsys.readouterr().err
    with pytest.raises(ConfigError, match='choose from safetensors'):
        export(run[0], 'pytorch', str(tmp_path / 'new'))
    assert main(['export', f'--workdir={tmp_path}/none', '--format=onnx', f'--out={tmp_path}/new']) == 2
    assert 'is not a work directory' in capsys.readouterr().err


@pytest.mark.parametrize(
    'kind, package, cure',
    [
        ('onnx', 'onnx', 'simclr_jax[export]'),
        ('safetensors', 'safetensors', 'simclr_jax[export]'),
        ('stablehlo', 'flatbuffers', 'simclr_jax[export]'),
        ('saved_model', 'tensorflow', 'simclr_jax[tensorflow]'),
    ],
)
def test_a_missing_package_is_told_with_the_cure(run, tmp_path, capsys, monkeypatch, kind, package, cure):
    for name in [name for name in sys.modules if name.partition('.')[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, 'simclr_jax.interop.saved_model', raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, 'safetensors.numpy', None)
    assert main(['export', f'--workdir={run[0]}', f'--format={kind}', f'--out={tmp_path}/out']) == 2
    told = capsys.readouterr().err
    assert package in told
    assert cure in told
    assert not (tmp_path / 'out').exists()


def test_the_formats_are_those_of_the_command():
    from simclr_jax.cli import export as command

    assert command.FORMATS == FORMATS


def test_an_exported_run_is_the_run(run):
    path, network = run
    found = open_exported(path)
    assert found.variables.keys() == network.variables.keys()
    for name, values in found.variables.items():
        np.testing.assert_array_equal(values, network.variables[name])
    assert (found.step, found.image_size, found.num_classes) == (7, 64, 5)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['safetensors', 'onnx', 'stablehlo', 'saved_model'])
@pytest.mark.parametrize('encoder', ['efficientnet', 'mobilenet'])
def test_inverted_residual_networks(tmp_path, encoder, kind):
    network = random_network(INVERTED | {'model.encoder': encoder, 'model.stem': 'imagenet'})
    sides = (32,) if kind == 'stablehlo' else (32, 45)
    assert_computes_the_same(network, written(network, kind, tmp_path), sides, counts=(2,))


@pytest.mark.parametrize(
    'kind, fields, message',
    [
        ('torchvision', {}, 'torchvision has no MobileNetV3 with stem cifar, width 0.125; choose --format=safetensors'),
        ('timm', {'model.width': 1.0}, "timm's MobileNetV3 has names of its own; choose --format=torchvision"),
    ],
)
def test_a_library_without_such_a_network_is_told(tmp_path, kind, fields, message):
    network = random_network({**INVERTED, 'model.encoder': 'mobilenet', 'model.variant': 'small', **fields})
    with pytest.raises(ConfigError, match=message):
        torch_out.write(network, epath.Path(tmp_path), kind)
