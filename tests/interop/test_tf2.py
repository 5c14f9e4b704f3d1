"""SavedModels that TensorFlow wrote in the reference's layout become networks with the reference's outputs."""

import numpy as np
import pytest

pytest.importorskip('tensorflow', reason='the SavedModels of the reference need TensorFlow')

import tensorflow as tf

from simclr_jax.cli.main import main
from simclr_jax.interop.tf2 import read_tf2
from support.reference_names import reference_value
from support.weights import SMALL, images_by_rule, random_network, share


class Model(tf.__internal__.tracking.AutoTrackable):
    """An object of the reference's model. It can have attributes and places in lists."""


def tree_of(variables):
    """The reference's objects for {path: variable}, such as 'resnet_model/block_groups/0/...'."""
    root = {}
    for path, variable in variables.items():
        *parts, last = path.split('/')
        place = root
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = variable
    return _objects(root)


def _objects(place):
    if not isinstance(place, dict):
        return place
    made = Model()
    if place and all(name.isdecimal() for name in place):
        # Places without variables, such as activations, are objects too.
        return [_objects(place.get(str(number), {})) for number in range(1 + max(map(int, place)))]
    for name, member in place.items():
        setattr(made, name, _objects(member))
    return made


def save(directory, values, call=None):
    """A SavedModel. Returns its path."""
    root = Model() if call is None else call
    root.model = tree_of({name: tf.Variable(value) for name, value in values.items()})
    tf.saved_model.save(root, str(directory))
    return str(directory)


def write(directory, listed):
    """A SavedModel of the fixtures' variables. Returns its path."""
    return save(directory, {entry['name']: reference_value(entry['name'], entry['shape']) for entry in listed})


def small_variables():
    """The variables of the smallest network by their paths in the reference's objects."""
    network = random_network(SMALL, classes=10)
    blocks = {'shortcut_conv': 'shortcut_layers/0', 'shortcut_bn': 'shortcut_layers/1'}
    blocks |= {'conv1': 'conv2d_bn_layers/0', 'bn1': 'conv2d_bn_layers/1'}
    blocks |= {'conv2': 'conv2d_bn_layers/2', 'bn2': 'conv2d_bn_layers/3'}
    kinds = {'scale': 'gamma', 'bias': 'beta', 'mean': 'moving_mean', 'var': 'moving_variance'}
    found = {}
    for (_, part, *place, last), values in network.variables.items():
        layer = 'conv2d/kernel' if last == 'kernel' else f'bn/{kinds.get(last)}'
        if part == 'probe':
            name = f'supervised_head/linear_layer/dense/{last}'
        elif part == 'head':
            inner = 'dense/kernel' if last == 'kernel' else f'bn_relu/{layer}'
            name = f'_projection_head/linear_layers/{int(place[0][-1]) - 1}/{inner}'
        elif place[0] == 'stem':
            name = f'resnet_model/initial_conv_relu_max_pool/{0 if last == "kernel" else 2}/{layer}'
        else:
            name = f'resnet_model/block_groups/{int(place[0][-1]) - 1}/layers/0/{blocks[place[2]]}/{layer}'
        found[name] = values
    return found


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp('saved') / 'small', small_variables())


def outputs_are_close(found, images, expected):
    ours = random_network({}, config=found.config, variables=found.variables).outputs(images)
    for name, values in expected.items():
        assert share(ours[name], values) < 1e-5, name


def test_outputs_are_the_references(oracle, tmp_path):
    reference = oracle('resnet_r18_cifar')
    found = read_tf2(write(tmp_path / 'r18', reference.info['variables']))
    names = {'representation': 'h0', 'projection': 'h3', 'logits': 'logits_sup'}
    images = reference['images']
    ours = random_network({}, config=found.config, variables=found.variables).outputs(images)
    for name, theirs in names.items():
        assert share(reference.pick(f'eval/{theirs}', ours[name]), reference[f'eval/{theirs}']) < 1e-5


def test_the_command_converts_it(saved, tmp_path, capsys):
    assert main(['convert', saved, f'--out={tmp_path}/run']) == 0
    told = capsys.readouterr().out
    assert 'ResNet-6 x0.125, sk_ratio 0.0, nonlinear head, 10 classes' in told
    assert 'logits: largest difference' in told


@pytest.mark.slow
@pytest.mark.parametrize('name', ['resnet_r18_se', 'resnet_r50_sk'])
def test_other_networks_are_walked_in_their_order(oracle, tmp_path, name):
    reference = oracle(name)
    found = read_tf2(write(tmp_path / name, reference.info['variables']))
    config = reference.info['config']
    assert (found.config.model.sk_ratio, found.config.model.se_ratio) == (config['sk_ratio'], config['se_ratio'])
    ours = random_network({}, config=found.config, variables=found.variables).outputs(reference['images'])
    noise = reference.info['float32_noise']['eval/h0']['max_abs_diff_over_max_abs']
    values = reference.pick('eval/h0', ours['representation'])
    assert share(values, reference['eval/h0']) < max(1e-5, 3 * noise)


@pytest.mark.slow
def test_the_released_layout(oracle, tmp_path):
    reference = oracle('ckpt_r50_1x_sk0')
    found = read_tf2(write(tmp_path / 'r50', reference.info['tf2_variables']))
    theirs = {'representation': 'final_avg_pool', 'projection': 'proj_head_output', 'logits': 'logits_sup'}
    expected = {ours: reference[f'tf2/{name}'] for ours, name in theirs.items()}
    outputs_are_close(found, images_by_rule(2, 64, 64), expected)
    assert max(found.check().values()) < 1e-5


class Callable(Model):
    """A SavedModel with the reference's call. Its outputs are not those of its variables."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([], tf.bool)])
    def __call__(self, images, trainable):
        del trainable
        return {'final_avg_pool': tf.tile(tf.reduce_mean(images, [1, 2]), [1, 16])[:, :16]}


def test_its_own_call_is_what_is_compared(tmp_path, capsys):
    source = save(tmp_path / 'small', small_variables(), Callable())
    assert main(['convert', source, f'--out={tmp_path}/run']) == 1
    assert 'computes something else' in capsys.readouterr().out
    assert not (tmp_path / 'run').exists()


class Nameless(Model):
    """A SavedModel whose call returns something else."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([], tf.bool)])
    def __call__(self, images, trainable):
        del trainable
        return {'features': images}


class Other(Model):
    """A SavedModel whose call takes something else."""

    @tf.function(input_signature=[tf.TensorSpec([None, 5])])
    def __call__(self, rows):
        return {'final_avg_pool': rows}


@pytest.mark.parametrize(
    'kind, message', [(Nameless, 'does not return final_avg_pool'), (Other, 'cannot be called as those of SimCLR')]
)
def test_a_call_that_is_not_the_references(tmp_path, capsys, kind, message):
    source = save(tmp_path / 'small', small_variables(), kind())
    assert main(['convert', source, f'--out={tmp_path}/run']) == 2
    assert message in capsys.readouterr().err


def test_objects_that_are_not_the_references(tmp_path, capsys):
    missing = '_projection_head/linear_layers/0/dense/kernel'
    variables = {name: values for name, values in small_variables().items() if name != missing}
    source = save(tmp_path / 'small', variables)
    assert main(['convert', source, f'--out={tmp_path}/run']) == 2
    assert 'its objects are not those of SimCLR' in capsys.readouterr().err


def test_what_is_no_savedmodel_of_simclr(saved, tmp_path, capsys):
    tf.saved_model.save(Model(), str(tmp_path / 'other'))
    damaged = tmp_path / 'damaged'
    damaged.mkdir()
    (damaged / 'saved_model.pb').write_bytes(np.random.default_rng(0).bytes(100))
    for source, message in (
        (tmp_path / 'other', 'not of SimCLR, whose SavedModels have the object model.resnet_model'),
        (damaged, 'no readable SavedModel of TensorFlow'),
    ):
        assert main(['convert', str(source), f'--out={tmp_path}/run']) == 2
        assert message in capsys.readouterr().err
    assert main(['convert', saved, f'--out={tmp_path}/run', '--weights=ema']) == 2
    assert '--weights=ema' in capsys.readouterr().err
