"""State dicts of other programs become our networks, with the outputs that PyTorch computed."""

import json
import pickle
import re
import sys

import numpy as np
import pytest

pytest.importorskip('safetensors', reason="needs pip install 'simclr_jax[export]'")

import ml_dtypes
import safetensors.numpy
from etils import epath

from simclr_jax import sharding
from simclr_jax.cli.main import main
from simclr_jax.config import ConfigError
from simclr_jax.interop import torch_out
from simclr_jax.interop.torch_in import read_torch
from simclr_jax.training import workdir
from simclr_jax.training.checkpoints import Checkpoints
from support.runs import DIGITS_HERE, assert_same_bits
from support.weights import (
    SMALL,
    TINY,
    images_by_rule,
    random_network,
    share,
    torch_state_dict,
    torch_value,
)

NONE = ((), ())
READ = {'weights': '', 'normalize': NONE, 'pool': ''}


def save(path, arrays, metadata=None):
    """A safetensors file. Returns its path."""
    path.write_bytes(safetensors.numpy.save({name: np.array(a, order='C') for name, a in arrays.items()}, metadata))
    return str(path)


def as_network(found):
    """An imported network as one that can be computed."""
    return random_network(TINY, config=found.config, variables=found.variables)


CASES = {'': {'64x64': 'stock', '66x80': 'stock'}, 'same': {'64x64': 'pad_end', '66x80': 'tf_same'}}
FEW = {'': {'64x64': 'stock'}}


@pytest.mark.parametrize(
    'name, cases',
    [
        ('torch_resnet18', FEW),
        pytest.param('torch_resnet18', CASES, marks=pytest.mark.slow),
        pytest.param('torch_resnet50', CASES, marks=pytest.mark.slow),
    ],
)
def test_outputs_are_those_of_torchvision(oracle, tmp_path, name, cases):
    """With torchvision's pooling, and with TensorFlow's where it is another one."""
    reference = oracle(name)
    arrays = {entry['name']: torch_value(entry['name'], entry['shape']) for entry in reference.info['state_dict']}
    source = save(tmp_path / 'model.safetensors', arrays)
    for pool, sides in cases.items():
        found = read_torch(source, weights='', normalize=NONE, pool=pool)
        assert found.num_classes == 10
        for size, case in sides.items():
            ours = as_network(found).outputs(images_by_rule(3, *map(int, size.split('x'))))
            assert share(ours['representation'], reference[f'eval/{size}/{case}/h']) < 1e-5
            assert share(ours['logits'], reference[f'eval/{size}/{case}/logits']) < 1e-5
    if cases is CASES:
        assert max(found.check().values()) < 1e-5


@pytest.fixture(scope='module')
def network():
    return random_network(TINY)


@pytest.fixture(scope='module')
def arrays(network):
    return torch_state_dict(network, head=False)


def renamed(arrays, prefix, *, fc='fc.'):
    """A state dict below a prefix. `fc` is the place of the classifier."""
    return {fc + name[3:] if name.startswith('fc.') else prefix + name: array for name, array in arrays.items()}


def without_classifier(arrays):
    return {name: array for name, array in arrays.items() if not name.startswith('fc.')}


def numbered(arrays):
    """The layers as children of nn.Sequential(conv1, bn1, relu, maxpool, layer1, layer2, avgpool)."""
    places = {'conv1': '0', 'bn1': '1', 'layer1': '4', 'layer2': '5'}
    split = {name: name.partition('.') for name in without_classifier(arrays)}
    return {f'backbone.{places[first]}.{rest}': arrays[name] for name, (first, _, rest) in split.items()}


SOURCES = {
    'torchvision and timm': lambda arrays: (arrays, 5),
    'lightly': lambda arrays: (numbered(arrays), 0),
    'lightly, its own ResNet': lambda arrays: (
        {name.replace('downsample', 'shortcut'): array for name, array in without_classifier(arrays).items()},
        0,
    ),
    'solo-learn': lambda arrays: (renamed(arrays, 'state_dict.backbone.', fc='state_dict.classifier.'), 5),
    'VISSL': lambda arrays: (
        renamed(without_classifier(arrays), 'classy_state_dict.base_model.model.trunk._feature_blocks.'),
        0,
    ),
    'MoCo': lambda arrays: (
        {
            **renamed(arrays, 'state_dict.module.encoder_q.', fc='state_dict.module.encoder_q.fc.'),
            **renamed(arrays, 'state_dict.module.encoder_k.', fc='state_dict.module.encoder_k.fc.'),
            'state_dict.module.queue': np.zeros((8, 4), np.float32),
        },
        0,
    ),
    'DINO': lambda arrays: (
        {
            **renamed(without_classifier(arrays), 'student.module.backbone.'),
            **renamed(without_classifier(arrays), 'teacher.backbone.'),
        },
        0,
    ),
}


@pytest.mark.parametrize('name', SOURCES)
def test_each_program_has_its_own_names(network, arrays, tmp_path, name):
    there, classes = SOURCES[name](arrays)
    source = save(tmp_path / 'weights.safetensors', there)
    found = read_torch(source, weights='base' if name in ('MoCo', 'DINO') else '', normalize=NONE, pool='')
    assert found.num_classes == classes
    assert (found.config.model.depth, found.config.model.width, found.config.model.stem) == (6, 0.125, 'imagenet')
    for path, values in found.variables.items():
        np.testing.assert_array_equal(values, network.variables[path])
    if name == 'MoCo':
        assert any('encoder_q.fc.weight: [5, 16]' in note or 'fc.weight: [5, 16]' in note for note in found.notes)
        assert any('state_dict.module.queue: [8, 4]' in note for note in found.notes)


def test_an_average_is_chosen(arrays, tmp_path):
    there = renamed(without_classifier(arrays), 'backbone.') | {
        f'momentum_backbone.{name}': 2 * array for name, array in without_classifier(arrays).items()
    }
    source = save(tmp_path / 'weights.safetensors', there)
    with pytest.raises(ConfigError, match='choose --weights=base or ema'):
        read_torch(source, **READ)
    base, ema = (read_torch(source, **{**READ, 'weights': weights}).variables for weights in ('base', 'ema'))
    path = ('params', 'encoder', 'stem', 'conv', 'kernel')
    np.testing.assert_array_equal(ema[path], 2 * base[path])
    with pytest.raises(ConfigError, match='has only base'):
        read_torch(save(tmp_path / 'one.safetensors', arrays), **{**READ, 'weights': 'ema'})


def test_a_missing_shortcut_is_the_identity(tmp_path):
    """As in torchvision's and timm's ResNet-18 and 34."""
    network = random_network(TINY | {'model.first_shortcut': 'identity'})
    stock = torch_state_dict(network, head=False)
    assert not any('layer1.0.downsample' in name for name in stock)
    found = read_torch(save(tmp_path / 'weights.safetensors', stock), **READ)
    assert found.config.model.first_shortcut == 'identity'
    assert found.variables.keys() == {path for path in network.variables if path[1] != 'head'}
    assert max(found.check().values()) < 1e-5


def test_the_padding_of_a_small_stem_is_asked_for(tmp_path, capsys):
    """solo-learn's first convolution of 3x3 has padding 2."""
    network = random_network(SMALL)
    source = save(tmp_path / 'weights.safetensors', torch_state_dict(network, head=False))
    with pytest.raises(ConfigError, match=r'choose --stem-padding=2 for networks of solo-learn'):
        read_torch(source, **READ)
    found = read_torch(source, **READ, stem_padding=2)
    assert found.config.model.border == 1
    assert max(found.check().values()) < 1e-5
    images = images_by_rule(2, 32, 32)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    ours = as_network(found).outputs(images)['logits']
    assert share(ours, network.outputs(padded)['logits']) < 1e-5
    assert share(ours, network.outputs(images)['logits']) > 1e-3
    for option in ({'pool': 'same'}, {'stem_padding': 2}):
        other = random_network(SMALL if 'pool' in option else TINY)
        path = save(tmp_path / 'other.safetensors', torch_state_dict(other, head=False))
        with pytest.raises(ConfigError, match=r'leave --(pool|stem-padding) out'):
            read_torch(path, **{**READ, 'stem_padding': 1 if 'pool' in option else None, **option})


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float64'])
def test_other_precisions_become_float32(arrays, tmp_path, dtype):
    kind = {'bfloat16': ml_dtypes.bfloat16}.get(dtype, dtype)
    rounded = {name: array.astype(kind) if array.dtype == np.float32 else array for name, array in arrays.items()}
    found = read_torch(save(tmp_path / 'weights.safetensors', rounded), **READ)
    values = found.variables['params', 'probe', 'kernel']
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, rounded['fc.weight'].astype(np.float32).T)


def test_the_normalisation_is_part_of_the_network(network, arrays, tmp_path, capsys):
    source = save(tmp_path / 'weights.safetensors', arrays)
    assert main(['convert', source, f'--out={tmp_path}/run']) == 2
    told = capsys.readouterr().err
    assert 'does not say how its images were normalised; choose --normalize=imagenet' in told
    assert main(['convert', source, f'--out={tmp_path}/run', '--normalize=0.4,0.5,0.6,0.2,0.3,0']) == 2
    assert 'three deviations > 0' in ' '.join(capsys.readouterr().err.split())
    assert main(['convert', source, f'--out={tmp_path}/run', '--normalize=0.4,0.5,0.6,0.2,0.3,0.5']) == 0
    config = workdir.read_config(f'{tmp_path}/run')
    assert (config.model.mean, config.model.std, config.model.pool) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.5), 'symmetric')
    restored, step = Checkpoints(f'{tmp_path}/run', reads_only=True).restore_model(sharding.make_mesh())
    assert step == 0
    kernel = restored['params']['encoder']['stem']['conv']['kernel']
    np.testing.assert_array_equal(kernel, network.variables['params', 'encoder', 'stem', 'conv', 'kernel'])


def test_a_run_that_starts_from_it_normalises_too(tmp_path, capsys):
    arrays = torch_state_dict(random_network(SMALL), head=False)
    source = save(tmp_path / 'weights.safetensors', arrays)
    assert main(['convert', source, f'--out={tmp_path}/start', '--normalize=imagenet', '--stem-padding=1']) == 0
    train = ['train', *DIGITS_HERE, f'--workdir={tmp_path}/run', f'--config.init_from={tmp_path}/start']
    assert main([*train, '--config.data.feed=resident']) == 2
    told = ' '.join(capsys.readouterr().err.split())
    assert f'model.mean=(): is (0.485, 0.456, 0.406) in init_from={tmp_path}/start' in told
    assert 'model.std=(): is (0.229, 0.224, 0.225)' in told
    assert not (tmp_path / 'run').exists()


STOCK = {'model.depth': 18, 'data.image_size': 64, 'head.kind': 'none', 'head.layers': 1}


@pytest.mark.parametrize(
    'fields, library',
    [
        (SMALL | {'model.border': 1}, ''),
        (TINY | {'model.first_shortcut': 'identity', 'model.se_ratio': 0.5, 'model.pool': 'symmetric'}, ''),
        (STOCK, 'torchvision'),
    ],
)
def test_a_round_trip_gives_the_same_bits(tmp_path, fields, library):
    network = random_network(fields | {'model.mean': (0.1, 0.2, 0.3), 'model.std': (1.0, 2.0, 3.0)})
    torch_out.write(network, epath.Path(tmp_path), library)
    found = read_torch(str(tmp_path / torch_out.FILE), weights='', normalize=None, pool='')
    assert_same_bits(found.variables, network.variables)
    for name in ('depth', 'width', 'mean', 'std', 'pool', 'se_ratio', 'border', 'first_shortcut'):
        assert found.config.model[name] == network.config.model[name], name
    assert found.config.head.kind == network.config.head.kind
    assert (found.step, found.config.data.image_size) == (network.step, network.image_size)


WRONG = {
    'a kernel is missing': ({'layer2.0.conv1.weight': None}, r'layer2.0.conv1.weight: missing, \[16, 8, 3, 3\]'),
    'another shape': ({'bn1.bias': np.zeros(3, np.float32)}, r'bn1.bias: \[3\], \[8\] is expected'),
    'one layer too many': ({'layer3.0.odd.weight': np.zeros(3, np.float32)}, r'layer3.0.odd.weight: unknown, \[3\]'),
    'an odd head': ({'head.dense1.weight': np.zeros((4, 3), np.float32)}, r'head.dense1.weight: \[4, 3\], \[4, 16\]'),
    'quantised': ({'layer1.0.conv1.weight': np.ones((8, 8, 3, 3), np.int8)}, r'layer1.0.conv1.weight: int8'),
    'no network': ({'layer1.0.conv1.weight': None}, 'it holds no ResNet, EfficientNet or MobileNetV3'),
    'a number where a head is': ({'head.dense1.weight': np.float32(1)}, r'head.dense1.weight: \[\]'),
    'not finite': ({'conv1.weight': np.full((8, 3, 7, 7), np.nan, np.float32)}, 'not finite'),
}


@pytest.mark.parametrize('name', ['fc.weight', 'fc.bias'])
def test_one_number_that_is_not_finite_is_found(arrays, tmp_path, capsys, name):
    broken = {**arrays, name: arrays[name].copy()}
    broken[name].flat[0] = np.nan
    source = save(tmp_path / 'weights.safetensors', broken)
    assert main(['convert', source, f'--out={tmp_path}/run', '--normalize=none']) == 1
    assert 'logits is not finite' in capsys.readouterr().out
    assert not (tmp_path / 'run').exists()


FACTS = {
    'mean': None,
    'std': [0.0, 0.0, 0.0],
    'image_size': -5,
    'step': 'x',
    'pool': 'odd',
    'border': 0.5,
    'sk_ratio': [],
}


@pytest.mark.parametrize('name', FACTS)
def test_facts_that_cannot_be(network, tmp_path, capsys, name):
    torch_out.write(network, epath.Path(tmp_path))
    path = tmp_path / torch_out.FILE
    arrays, facts = torch_out.read_state_dict(str(path))
    wrong = {**facts, 'mean': [0.0] * 3, 'std': [1.0] * 3, name: FACTS[name]}
    save(path, arrays, {'simclr_jax': json.dumps(wrong)})
    assert main(['convert', str(path), f'--out={tmp_path}/run']) == 2
    told = capsys.readouterr().err
    assert 'no description of a network' in told or f'model.{name}' in told or f'data.{name}' in told
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('name', WRONG)
def test_what_does_not_fit_is_listed(arrays, tmp_path, capsys, name):
    changes, message = WRONG[name]
    there = {key: array for key, array in {**arrays, **changes}.items() if array is not None}
    source = save(tmp_path / 'weights.safetensors', there)
    code = main(['convert', source, f'--out={tmp_path}/run', '--normalize=none'])
    told = capsys.readouterr()
    assert re.search(message, told.err + told.out)
    assert code == (1 if name == 'not finite' else 2)
    assert not (tmp_path / 'run').exists()


def test_files_that_are_no_weights(arrays, tmp_path, capsys, monkeypatch):
    """Random, cut off, and harmful files. A pickle is never opened without PyTorch, and by it as weights alone."""
    good = tmp_path / 'good.safetensors'
    save(good, arrays)
    content = good.read_bytes()
    header = json.dumps({'w': {'dtype': 'F32', 'shape': [2**40], 'data_offsets': [0, 2**42]}}).encode()
    opened = tmp_path / 'opened'

    class Harmful:
        def __reduce__(self):
            return open, (str(opened), 'w')

    bad = {
        'random.safetensors': np.random.default_rng(0).bytes(4096),
        'cut.safetensors': content[: len(content) // 2],
        'header.safetensors': content[:20],
        'empty.safetensors': b'',
        'huge.safetensors': len(header).to_bytes(8, 'little') + header,
        'long.safetensors': (2**60).to_bytes(8, 'little') + b'{}',
        'facts.safetensors': safetensors.numpy.save(arrays, {'simclr_jax': '[1, 2]'}),
        'text.safetensors': safetensors.numpy.save(arrays, {'simclr_jax': 'text'}),
        'harmful.pth': pickle.dumps(Harmful()),
        'harmful.ckpt': pickle.dumps({'state_dict': Harmful()}),
        'random.pt': np.random.default_rng(0).bytes(4096),
    }
    for without_torch in (False, True):
        if without_torch:
            monkeypatch.setitem(sys.modules, 'torch', None)
        for name, damaged in bad.items():
            path = tmp_path / name
            path.write_bytes(damaged)
            assert main(['convert', str(path), f'--out={tmp_path}/run', '--normalize=none']) == 2, name
            told = capsys.readouterr().err
            assert name in told
            assert 'Traceback' not in told
    assert 'which only PyTorch reads safely, and torch is not installed: pip install torch' in ' '.join(told.split())
    assert not opened.exists()
    assert not (tmp_path / 'run').exists()
    assert main(['convert', str(tmp_path / 'absent.pth'), f'--out={tmp_path}/run']) == 2
    assert 'there is no such file' in capsys.readouterr().err


def test_options_of_pytorch_are_for_its_files(tmp_path, capsys):
    assert main(['convert', str(tmp_path), f'--out={tmp_path}/run', '--normalize=none', '--pool=same']) == 2
    assert '--normalize=none, --pool=same' in capsys.readouterr().err
