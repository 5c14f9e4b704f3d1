"""Checkpoints that TensorFlow wrote under the reference's names become networks with the reference's outputs."""

import re

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

pytest.importorskip('tensorflow', reason='the checkpoints of the reference need TensorFlow')

import tensorflow as tf
from flax.traverse_util import flatten_dict

from simclr_jax import sharding
from simclr_jax.cli.main import main
from simclr_jax.interop.architecture import encoder_layers
from simclr_jax.interop.tf1 import find_checkpoint, read_tf1
from simclr_jax.interop.tf1_names import encoder_names, head_names, probe_names
from simclr_jax.interop.tf1_network import Network
from simclr_jax.models.classifier import Classifier
from simclr_jax.models.resnet import ResNet
from simclr_jax.networks import make_model
from simclr_jax.tasks.finetune import Finetune, init_from
from simclr_jax.training import workdir
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.step import make_train_step
from support.reference_names import parameter_paths, reference_value
from support.weights import SMALL, images_by_rule, random_network

STEP = 1234


def write(directory, arrays):
    """A checkpoint as TensorFlow 1 writes it. Returns its prefix."""
    prefix = str(directory / f'model.ckpt-{STEP}')
    arrays = {'global_step': np.int64(STEP), **arrays}
    slices = [''] * len(arrays)
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=list(arrays), shape_and_slices=slices, tensors=[*arrays.values()])
    return prefix


def under_tf1_names(variables):
    """{name in TensorFlow 1: value}, for the variables of a TensorFlow 2 fixture with their run-time names."""
    found = {}
    for variable in variables:
        name = variable['reference_variable_name']
        if match := re.search(r'(nl_\d+)/', name):
            place = f'head_contrastive/{match[1]}/' + ('dense' if 'dense' in name else 'batch_normalization')
        elif 'head_supervised' in name:
            place = 'head_supervised/linear_layer/dense'
        else:
            layer = re.search(r'/(?:sync_)?(batch_normalization|conv2d)(_\d+)?/\w+$', name)
            place = f'base_model/{layer[1]}{layer[2] or ""}'
        found[f'{place}/{name.rpartition("/")[2]}'] = reference_value(variable['name'], variable['shape'])
    assert len(found) == len(variables)
    return found


def outputs_of(found, images):
    """What the imported network computes."""
    model = make_model(found.config, found.num_classes)
    return jax.jit(lambda variables, images: model.apply(variables, images, train=False))(found.tree(), images)


def close(ours, expected, tolerance=1e-5):
    assert np.abs(ours - expected).max() <= tolerance * np.abs(expected).max()


@pytest.fixture(scope='module')
def arrays():
    """The variables of the smallest encoder with a head of three layers and a probe."""
    network = random_network(SMALL | {'head.layers': 3}, classes=10)
    names = encoder_names(network.encoder) | head_names('nonlinear', 3) | probe_names()
    return {name: network.variables[path] for name, path in names.items()}


@pytest.fixture(scope='module')
def prefix(arrays, tmp_path_factory):
    return write(
        tmp_path_factory.mktemp('small'), arrays | {'base_model/conv2d/kernel/Momentum': np.zeros(3, np.float32)}
    )


@pytest.mark.parametrize(
    'name', ['resnet_r18_cifar', 'resnet_r18_se', pytest.param('resnet_r50_sk', marks=pytest.mark.slow)]
)
def test_outputs_are_the_references(oracle, tmp_path, name):
    """Read from the file alone. Our float32 is as near to the reference's float64 as its own float32."""
    reference = oracle(name)
    found = read_tf1(write(tmp_path, under_tf1_names(reference.info['variables'])), '')
    config = reference.info['config']
    assert (found.config.model.depth, found.config.model.width) == (config['resnet_depth'], config['width_multiplier'])
    assert (found.config.model.sk_ratio, found.config.model.se_ratio) == (config['sk_ratio'], config['se_ratio'])
    assert (found.step, found.num_classes) == (STEP, config['num_classes'])
    ours = outputs_of(found, reference['images'])
    for ours_name, theirs in (('representation', 'h0'), ('projection', 'h3'), ('logits', 'logits_sup')):
        noise = reference.info['float32_noise'][f'eval/{theirs}']['max_abs_diff_over_max_abs']
        values = reference.pick(f'eval/{theirs}', ours[ours_name])
        close(values, reference[f'eval/{theirs}'], max(1e-5, 3 * noise))


@pytest.mark.slow
@pytest.mark.parametrize('weights', ['base', 'ema'])
def test_released_files_have_two_sets_of_weights(oracle, tmp_path, weights):
    reference = oracle('ckpt_r50_1x_sk0')
    wanted = [
        variable for variable in reference.info['tf1_variables'] if variable['part'] not in ('slot', 'global_step')
    ]
    prefix = write(
        tmp_path, {variable['name']: reference_value(variable['name'], variable['shape']) for variable in wanted}
    )
    found = read_tf1(prefix, weights)
    images = images_by_rule(2, 64, 64)
    ours = outputs_of(found, images)
    for ours_name, theirs in (('representation', 'final_avg_pool'), ('projection', 'h3'), ('logits', 'logits_sup')):
        close(ours[ours_name], reference[f'tf1/{weights}/{theirs}'])
    model = make_model(found.config, found.num_classes)
    _, maps = jax.jit(lambda v, x: model.apply(v, x, method='encode', maps=True))(found.tree(), images)
    named = {'initial_max_pool': nn.max_pool(maps['stem'], (3, 3), (2, 2), 'SAME')} | {
        f'block_group{n}': maps[f'stage{n}'] for n in range(1, 5)
    }
    for theirs, part in named.items():
        close(part.mean((1, 2)), reference[f'tf1/{weights}/{theirs}_hwmean'])
        close(part.mean(3), reference[f'tf1/{weights}/{theirs}_cmean'])
    assert max(found.check().values()) < 1e-5


def test_names_are_those_of_the_released_files(oracle):
    listed = [
        v for v in oracle('ckpt_r50_1x_sk0').info['tf1_variables'] if v['part'] not in ('slot', 'ema', 'global_step')
    ]
    paths = parameter_paths([variable['tf2_name'] for variable in listed])
    names = encoder_names(ResNet(50, stem='imagenet')) | head_names('nonlinear', 3) | probe_names()
    assert names == {variable['name']: paths[variable['tf2_name']] for variable in listed}


@pytest.mark.parametrize(
    'depth, sk_ratio, convs, norms, shortcuts',
    [
        (50, 0.0, 53, 53, ([1, 11, 24, 43], [1, 11, 24, 43])),
        (50, 0.0625, 87, 71, ([3, 19, 40, 71], [3, 16, 33, 58])),
        (101, 0.0, 104, 104, None),
        (101, 0.0625, 172, 139, None),
        (152, 0.0, 155, 155, None),
        (152, 0.0625, 257, 207, None),
    ],
)
def test_counts_are_those_of_the_released_files(depth, sk_ratio, convs, norms, shortcuts):
    layers = list(encoder_layers(ResNet(depth, stem='imagenet', sk_ratio=sk_ratio)))
    of_kind = [[place for kind, place in layers if kind == wanted] for wanted in ('conv', 'norm')]
    assert [len(places) for places in of_kind] == [convs, norms]
    if shortcuts:
        found = [[number for number, place in enumerate(places) if 'shortcut' in place] for places in of_kind]
        assert found == [*shortcuts]


def test_a_work_directory_holds_the_network(prefix, tmp_path, capsys):
    assert main(['convert', prefix, f'--out={tmp_path}/run']) == 0
    told = capsys.readouterr().out
    assert f'step {STEP:,}: ResNet-6 x0.125, sk_ratio 0.0, nonlinear head, 10 classes.' in told
    for name in ('representation', 'projection', 'logits'):
        assert float(re.search(rf'{name}: largest difference (\S+)', told)[1]) < 1e-5
    config = workdir.read_config(f'{tmp_path}/run')
    assert (config.model.stem, config.head.layers, config.data.image_size) == ('cifar', 3, 32)
    variables, step = Checkpoints(f'{tmp_path}/run', reads_only=True).restore_model(sharding.make_mesh())
    assert step == STEP
    found = read_tf1(prefix, 'base')
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(variables), found.tree())
    assert main(['convert', prefix, f'--out={tmp_path}/run']) == 2
    assert f'--out={tmp_path}/run: it exists; choose another directory' in capsys.readouterr().err


@pytest.mark.slow
def test_the_commands_take_it(arrays, prefix, tmp_path):
    """Embedding, and fine-tuning from the first layer of the head, on images of one's own."""
    assert main(['convert', prefix, f'--out={tmp_path}/run']) == 0
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        pixels, labels = rng.integers(0, 256, (16, 32, 32, 3), np.uint8), np.arange(16) % 4
        np.savez(tmp_path / f'own_{split}.npz', images=pixels, labels=labels)
    own = f'{tmp_path}/own_{{split}}.npz'
    assert main(['embed', f'--workdir={tmp_path}/run', f'--dataset={own}', f'--out={tmp_path}/features.npz']) == 0
    with np.load(tmp_path / 'features.npz') as features:
        expected = outputs_of(read_tf1(prefix, 'base'), pixels / np.float32(255))['representation']
        close(features['features'], expected)
    short = ['--config.finetune.steps=2', '--config.finetune.batch_size=16', '--config.bootstrap_draws=100']
    tune = ['evaluate', f'--workdir={tmp_path}/run', f'--dataset={own}', '--protocols=finetune', *short]
    assert main([*tune, '--config.finetune.head_layer=1']) == 0
    (trained,) = (tmp_path / 'run' / 'trained').iterdir()
    assert main(['export', f'--workdir={trained}', '--format=saved_model', f'--out={tmp_path}/classifier']) == 0


def test_a_file_of_version_one_has_no_projection_head(arrays, tmp_path, capsys):
    source = write(tmp_path, {name: value for name, value in arrays.items() if not name.startswith('head_contrastive')})
    assert main(['convert', source, f'--out={tmp_path}/run']) == 0
    assert 'none head, 10 classes' in capsys.readouterr().out
    config = workdir.read_config(f'{tmp_path}/run')
    assert (config.head.kind, config.probe) == ('none', True)


class Trained(Network):
    """The reference's network in TensorFlow, in training: norms use the statistics of the batch."""

    def __init__(self, arrays, encoder):
        super().__init__(arrays, encoder)
        self.tensors = {name: tf.Variable(array) for name, array in arrays.items()}

    def _value(self, name):
        return self.tensors[name]

    def _normalized(self, x, name):
        mean, variance = tf.nn.moments(x, [*range(len(x.shape) - 1)])
        offset = self._value(f'{name}/beta') if f'{name}/beta' in self.tensors else 0.0
        return (x - mean) / tf.sqrt(variance + 1e-5) * self._value(f'{name}/gamma') + offset


def test_a_step_of_fine_tuning_is_that_of_tensorflow(arrays, prefix, tmp_path):
    """From the converted work directory, by SGD: every parameter after the step."""
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(size=(8, 32, 32, 3)).astype(np.float32), np.arange(8, dtype=np.int32) % 10
    found = read_tf1(prefix, 'base')
    theirs = Trained(arrays, make_model(found.config, 10).encoder)
    with tf.GradientTape() as tape:
        logits = theirs.outputs(tf.constant(images))['logits']
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    gradients = tape.gradient(loss, theirs.tensors)

    assert main(['convert', prefix, f'--out={tmp_path}/run']) == 0
    mesh = sharding.make_mesh(jax.devices()[:1])
    pretrained, _ = Checkpoints(f'{tmp_path}/run', reads_only=True).restore_model(mesh)
    model = make_model(found.config, 0)
    task, tx = Finetune(Classifier(model.encoder, model.head, 10), 32, mesh), optax.sgd(10.0)
    state = jax.jit(init_from, static_argnums=(1, 2))(pretrained, task, tx, jax.random.key(0))
    state = state.replace(params={**state.params, 'probe': pretrained['params']['probe']})
    batch = {'views': images[:, None], 'label': labels, 'mask': np.ones(8, np.float32), 'index': labels}
    state, metrics = make_train_step(task, tx, mesh)(state, batch, jax.random.key(1))
    assert abs(float(metrics['loss']) - float(loss)) < 1e-5 * float(loss)
    names = {path: name for name, path in (encoder_names(model.encoder) | probe_names()).items()}
    for (_, *path), values in flatten_dict({'params': state.params}).items():
        name = names['params', *path]
        close(values, arrays[name] - 10 * gradients[name].numpy())
        assert gradients[name].numpy().any()


def test_prefixes_may_end_as_files_of_pytorch(arrays, tmp_path):
    """model.ckpt is the default of TensorFlow. Of several checkpoints the one of the latest step is taken."""
    for name in ('model.ckpt', 'model.ckpt-9', 'model.ckpt-10'):
        write(tmp_path, arrays)
        for path in list(tmp_path.glob(f'model.ckpt-{STEP}.*')):
            path.rename(tmp_path / path.name.replace(f'model.ckpt-{STEP}', name))
    assert find_checkpoint(str(tmp_path)) == str(tmp_path / 'model.ckpt-10')
    assert main(['convert', str(tmp_path / 'model.ckpt'), f'--out={tmp_path}/run']) == 0


@pytest.mark.parametrize('ending', ['.index', '.data-00000-of-00001', '/..'])
def test_a_file_or_the_directory_means_the_checkpoint(prefix, tmp_path, ending, monkeypatch):
    seen = []
    monkeypatch.setattr('simclr_jax.interop.tf1.read_tf1', lambda *given: seen.append(given) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(['convert', prefix + ending if ending != '/..' else prefix.rpartition('/')[0], f'--out={tmp_path}'])
    assert seen == [(prefix, '')]


def changed(arrays, **changes):
    """Some arrays changed: name to function, or to None for one that is left out."""
    found = dict(arrays)
    for name, change in changes.items():
        value = found.pop(name)
        if change is not None:
            found[name] = change(value)
    return found


KERNEL, GAMMA = 'base_model/conv2d_5/kernel', 'head_contrastive/nl_1/batch_normalization/gamma'


@pytest.mark.parametrize(
    'changes, message',
    [
        ({KERNEL: None}, rf'its encoder is none(.|\n)*{KERNEL}: missing, \[3, 3, 8, 16\] is expected'),
        ({KERNEL: lambda v: v[..., :5]}, rf'{KERNEL}: \[3, 3, 8, 5\], \[3, 3, 8, 16\] is expected'),
        ({GAMMA: None}, rf'its heads are none(.|\n)*{GAMMA}: missing, \[16\] is expected'),
        ({'base_model/conv2d/kernel': None}, 'no convolution of images with three channels'),
    ],
)
def test_what_does_not_fit_is_listed(arrays, tmp_path, capsys, changes, message):
    source = write(tmp_path, changed(arrays, **changes))
    assert main(['convert', source, f'--out={tmp_path}/run']) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / 'run').exists()


def test_the_weights_are_chosen_where_there_are_two_sets(arrays, tmp_path, capsys):
    twice = arrays | {f'ema_model/{name}': 2 * value for name, value in arrays.items() if 'supervised' not in name}
    source = write(tmp_path, twice)
    assert main(['convert', source, f'--out={tmp_path}/run']) == 2
    assert 'choose --weights=base or ema' in capsys.readouterr().err
    base, ema = (read_tf1(source, weights).variables for weights in ('base', 'ema'))
    path = ('params', 'encoder', 'stage2', 'block1', 'conv1', 'kernel')
    np.testing.assert_array_equal(ema[path], 2 * base[path])
    only = write(tmp_path, arrays)
    assert main(['convert', only, f'--out={tmp_path}/run', '--weights=ema']) == 2
    assert f'--weights=ema: {only} has only base' in capsys.readouterr().err


def test_files_that_are_no_checkpoints(arrays, tmp_path, capsys):
    cases = {}
    (tmp_path / 'empty').mkdir()
    cases[str(tmp_path / 'empty')] = 'there is no checkpoint of TensorFlow, no SavedModel and no file of PyTorch; give'
    other = tmp_path / 'other'
    other.mkdir()
    cases[write(other, {'w': np.zeros(3, np.float32)})] = r'not of SimCLR, .* there are: global_step, w'
    for name, damage in (('index', lambda file: b'text'), ('data-00000-of-00001', lambda file: file[: len(file) // 2])):
        place = tmp_path / name
        place.mkdir()
        damaged = write(place, arrays)
        path = place / f'model.ckpt-{STEP}.{name}'
        path.write_bytes(damage(path.read_bytes()))
        cases[damaged] = 'no readable checkpoint of TensorFlow|it is damaged'
    for source, message in cases.items():
        assert main(['convert', source, f'--out={tmp_path}/run']) == 2
        told = capsys.readouterr().err
        assert re.search(message, told), told
        assert 'Traceback' not in told


@pytest.mark.parametrize(
    'factor, message', [(0.0, 'two different images have the same features'), (None, 'something else')]
)
def test_a_network_that_computes_something_else_is_not_written(arrays, tmp_path, capsys, monkeypatch, factor, message):
    """Weights of zero; or a converter that confuses two layers of one shape."""
    if factor is None:
        mixed = encoder_names

        def confused(encoder, part='base_model'):
            names = mixed(encoder, part)
            first, second = (f'{part}/conv2d_{number}/kernel' for number in (2, 3))
            return names | {first: names[second], second: names[first]}

        monkeypatch.setattr('simclr_jax.interop.tf1.encoder_names', confused)
        source = write(tmp_path, arrays)
    else:
        source = write(tmp_path, {name: factor * value for name, value in arrays.items()})
    assert main(['convert', source, f'--out={tmp_path}/run']) == 1
    assert message in capsys.readouterr().out
    assert not (tmp_path / 'run').exists()
