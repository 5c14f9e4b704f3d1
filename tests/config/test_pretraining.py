"""The configuration: documented fields, published settings, overrides, and messages that name the cure."""

import json
import pathlib
import re

import pytest

from simclr_jax.config import ConfigError, base_config, check, evaluation, flatten, load_config, with_values
from simclr_jax.config import pretraining as configuration
from simclr_jax.config.encoders import VARIANTS
from simclr_jax.networks import make_encoder

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'
FILES = sorted(CONFIGS.glob('*.py'))
# Every use of a configuration file that the files' own docstrings show, and each file without an argument
# (folder needs one).
DOCUMENTED = sorted(
    {match for file in FILES for match in re.findall(r'configs/\w+\.py(?::\S+)?', file.read_text())}
    | {f'configs/{file.name}' for file in FILES if file.stem != 'folder'}
)


def load(spec, **overrides):
    """load('configs/digits.py', seed='1'), with '__' for the dots of a field's name."""
    pairs = [(name.replace('__', '.'), text) for name, text in overrides.items()]
    return load_config(str(CONFIGS.parent / spec), pairs)


def problems_of(spec, **overrides):
    with pytest.raises(ConfigError) as caught:
        load(spec, **overrides)
    return caught.value.problems


@pytest.fixture
def written(tmp_path):
    """written('body of get_config') -> path of a configuration file that changes base_config()."""

    def write(body):
        path = tmp_path / 'mine.py'
        path.write_text(
            'from simclr_jax.config import base_config\n'
            'def get_config(arg):\n'
            '    config = base_config()\n'
            f'    {body}\n'
            '    return config\n'
        )
        return str(path)

    return write


@pytest.mark.parametrize('fields', [configuration.FIELDS, evaluation.FIELDS], ids=['pretraining', 'evaluation'])
def test_every_field_says_what_it_means_and_what_it_accepts(fields):
    for field in fields:
        assert re.fullmatch(r'.+[.]', field.meaning), field.name
        assert field.accepts, field.name
        assert field.type_problem(field.default) == field.problem(field.default) == '', field.name
    assert len({field.name for field in fields}) == len(fields)


@pytest.mark.parametrize('spec', DOCUMENTED)
def test_documented_uses_load(spec):
    assert check(load(spec)) == []


def test_the_documentation_shows_every_file():
    assert {spec.partition(':')[0] for spec in DOCUMENTED} == {f'configs/{file.name}' for file in FILES}
    assert {'configs/cifar10.py:r50', 'configs/imagenet.py:v1,epochs=100'} < set(DOCUMENTED)


PUBLISHED = {
    # SimCLR, section 2.2 and appendix B.1.
    'configs/imagenet.py:v1': {
        'batch_size': 4096,
        'train_epochs': 1000,
        'warmup_epochs': 10,
        'optimizer.name': 'lars',
        'optimizer.learning_rate': 0.3,
        'optimizer.scaling': 'linear',
        'optimizer.weight_decay': 1e-6,
        'loss.temperature': 0.1,
        'head.layers': 2,
        'head.out_dim': 128,
        'model.depth': 50,
        'augment.jitter.strength': 1.0,
    },
    # SimCLRv2, section 3 and appendix.
    'configs/imagenet.py': {
        'batch_size': 4096,
        'train_epochs': 800,
        'warmup_epochs': 0.05 * 800,
        'optimizer.name': 'lars',
        'optimizer.learning_rate': 0.1,
        'optimizer.scaling': 'sqrt',
        'optimizer.weight_decay': 1e-4,
        'loss.temperature': 0.1,
        'head.layers': 3,
        'model.depth': 50,
        'model.sk_ratio': 0.0,
    },
    'configs/imagenet.py:v2,depth=152,width=3,sk=true': {
        'model.depth': 152,
        'model.width': 3.0,
        'model.sk_ratio': 0.0625,
        'head.layers': 3,
    },
    # The reference's README.
    'configs/cifar10.py:r18': {
        'batch_size': 512,
        'train_epochs': 1000,
        'optimizer.name': 'lars',
        'optimizer.learning_rate': 1.0,
        'optimizer.weight_decay': 1e-4,
        'loss.temperature': 0.5,
        'augment.jitter.strength': 0.5,
        'model.depth': 18,
    },
    # SimCLR, appendix B.9.
    'configs/cifar10.py:r50': {
        'batch_size': 1024,
        'train_epochs': 1000,
        'optimizer.name': 'lars',
        'optimizer.learning_rate': 1.0,
        'loss.temperature': 0.5,
        'augment.jitter.strength': 0.5,
        'model.depth': 50,
    },
}


@pytest.mark.parametrize('spec', PUBLISHED)
def test_published_settings(spec):
    fields = flatten(load(spec))
    assert {name: fields[name] for name in PUBLISHED[spec]} == PUBLISHED[spec]


def test_cifar_leaves_the_blur_out_and_imagenet_does_not():
    for arg, blurred in {'cifar10.py:r18': False, 'cifar10.py:r50': False, 'imagenet.py:v1': True}.items():
        assert all(('blur' in view) == blurred for view in load(f'configs/{arg}').augment.views)


def test_the_warmup_of_simclr_v2_is_a_share_of_the_epochs():
    assert load('configs/imagenet.py:epochs=100').warmup_epochs == pytest.approx(5.0)


def test_wrong_arguments_of_configuration_files():
    assert 'must begin with v1 or v2' in problems_of('configs/imagenet.py:v3')[0]
    unknown, wrong = problems_of('configs/imagenet.py:v1,dept=18,batch=many')
    assert re.search('dept=18.*depth, width, sk, epochs, batch', unknown)
    assert re.search('batch=many.*integer', wrong)
    assert 'r18, r50 or cpu' in problems_of('configs/cifar10.py:r34')[0]
    assert 'takes none' in problems_of('configs/digits.py:cpu')[0]
    assert '--config.data.path=' in problems_of('configs/folder.py')[0]


@pytest.mark.parametrize(
    'name, text, value',
    [
        ('probe', 'false', False),
        ('probe', '1', True),
        ('loss.semi_hard', 'True', True),
        ('batch_size', '256', 256),
        ('train_steps', '1e2', 100),
        ('train_steps', '20.0', 20),
        ('model.remat', '', ()),
        ('model.remat', '()', ()),
        ('model.remat', '[1, 2]', (1, 2)),
        ('knn.k', '1e1,2e1', (10, 20)),
        ('train_epochs', '3', 3.0),
        ('optimizer.weight_decay', '1e-6', 1e-6),
        ('optimizer.name', 'adam', 'adam'),
        ('data.eval_split', '', ''),
        ('data.path', '/images/of my=cat', '/images/of my=cat'),
        ('knn.k', '10,20', (10, 20)),
        ('knn.k', '5', (5,)),
        ('augment.crop.area', '0.2,1', (0.2, 1.0)),
        ('augment.crop.area', '(0.2, 1.0)', (0.2, 1.0)),
        ('augment.views', 'crop,crop flip', ('crop', 'crop flip')),
        ('augment.views', "('crop', 'crop flip')", ('crop', 'crop flip')),
    ],
)
def test_overrides_have_the_type_of_their_field(name, text, value):
    found = flatten(load('configs/digits.py', **{name.replace('.', '__'): text}))[name]
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, tuple):
        assert [type(part) for part in found] == [type(part) for part in value]


def test_all_mistakes_are_told_at_once_each_with_value_rule_and_cure():
    wrong = {
        'batch_size': ('many', 'integer', 'for example 100'),
        'probe': ('maybe', 'true or false', 'true or false'),
        'loss__temperature': ('0', '> 0', 'for example 0.1'),
        'optimizer__learning_rate': ('nan', 'finite', 'for example'),
        'optimizer__momentum': ('1', '[0, 1)', 'for example 0.9'),
        'model__depth': ('51', 'must be one of', '18, 34, 50, 101, 152, 200'),
        'optimizer__name': ('larss', 'one of lars', 'did you mean lars?'),
        'knn__k': ('ten', 'numbers with commas', 'for example'),
        'augment__views': ('crop', 'at least two', 'for example'),
        'augment__noise__std': ('0.3,0.1', 'low <= high', 'two numbers'),
    }
    problems = problems_of('configs/digits.py', **{name: text for name, (text, *_) in wrong.items()})
    assert len(problems) == len(wrong)
    for name, (text, rule, cure) in wrong.items():
        (problem,) = [line for line in problems if name.replace('__', '.') in line]
        assert all(part in problem for part in (text.split(',')[0], rule, cure)), problem


@pytest.mark.parametrize('text', ['{[]: 1}', '1,two', 'true', '0', '1.5', ''])
def test_numbers_of_neighbours_are_integers_above_zero(text):
    (problem,) = problems_of('configs/digits.py', knn__k=text)
    assert 'knn.k' in problem


def test_fields_that_contradict_each_other():
    one, other = problems_of('configs/digits.py', model__sk_ratio='0.0625', model__se_ratio='0.25')
    assert re.search(r'model.se_ratio=0.25.*at most one', one)
    assert 'model.depth >= 50' in other
    (blocks,) = problems_of('configs/digits.py', loss__name='nt_logistic', loss__block_size='512')
    assert re.search(r'loss.block_size=512.*nt_xent alone.*to 0 for nt_logistic', blocks)
    assert 'integer >= 0' in problems_of('configs/digits.py', loss__block_size='-1')[0]
    assert 'data.path' in problems_of('configs/digits.py', data__source='arrays')[0]
    assert 'data.name' in problems_of('configs/digits.py', data__source='tfds')[0]


@pytest.mark.parametrize(
    'fields, message',
    [
        (
            {'se_ratio': '0.25'},
            r'model.se_ratio=0.25: model.encoder=mobilenet does not have this field; .* default 0.0',
        ),
        ({'border': '1'}, 'model.border=1'),
        ({'variant': 'b1'}, 'model.variant=b1: model.encoder=mobilenet has large, small; choose one'),
        ({'variant': 'small', 'remat': '6'}, r'model.remat=\(6,\): must be stages from 1 to 5'),
        ({'dropout': '1'}, r'model.dropout=1.0: must be a number in \[0, 1\)'),
        ({'encoder': 'resnet', 'stochastic_depth': '0.2'}, 'model.stochastic_depth=0.2: model.encoder=resnet does not'),
        ({'encoder': 'resnet', 'remat': '5'}, 'must be stages from 1 to 4'),
        ({'encoder': 'efficientnets'}, 'did you mean efficientnet'),
    ],
)
def test_fields_of_another_encoder(fields, message):
    fields = {'encoder': 'mobilenet', **fields}
    (problem,) = problems_of('configs/digits.py', **{f'model__{name}': text for name, text in fields.items()})
    assert re.search(message, problem)


@pytest.mark.parametrize('encoder', VARIANTS)
def test_variants_and_stages_are_those_of_the_encoders(encoder):
    for variant in VARIANTS[encoder] or ('',):
        config = with_values(base_config(), {'model.encoder': encoder, 'model.variant': variant})
        made = make_encoder(config)
        stages = [part for part in made.parts if part.startswith('stage')]
        assert not check(with_values(config, {'model.remat': (len(stages),)}))
        assert check(with_values(config, {'model.remat': (len(stages) + 1,)}))
    first = next(iter(VARIANTS[encoder]), '')
    fields = {'model.encoder': encoder, 'model.variant': first}
    assert make_encoder(with_values(base_config(), {**fields, 'model.variant': ''})) == make_encoder(
        with_values(base_config(), fields)
    )


@pytest.mark.parametrize(
    'name, nearest',
    [
        ('batchsize', 'batch_size'),
        ('lerning_rate', 'optimizer.learning_rate'),
        ('loss.temprature', 'loss.temperature'),
        ('model.learning_rate', 'optimizer.learning_rate'),
        ('temperature', 'loss.temperature or distill.temperature or knn.temperature'),
    ],
)
def test_unknown_fields_come_with_the_nearest_one(name, nearest):
    (problem,) = problems_of('configs/digits.py', **{name.replace('.', '__'): '1'})
    assert f'--config.{name}=1' in problem
    assert f'did you mean {nearest}?' in problem


def test_a_group_is_no_field():
    (problem,) = problems_of('configs/digits.py', loss='nt_xent')
    assert re.search(r'loss is a group.*loss\.name', problem)


@pytest.mark.parametrize(
    'body, words',
    [
        ("config.batch_size = 'many'", ['line 4', 'batch_size', 'many', 'int']),
        ('config.batch_size = 2.5', ['line 4', 'batch_size', '2.5', 'int']),
        ('config.batchsize = 3', ['line 4', 'batchsize', 'did you mean "batch_size"']),
        ('config.seed = True', ['seed=True', 'int']),
        ("del config.unlock()['seed']", ['seed is missing', 'base_config()']),
        ('config.unlock().sede = 1', ['sede', 'did you mean seed?']),
        ('config.data = 5', ['line 4', 'data', '5']),
        ('config = None', ['None', 'base_config()']),
        ('import absent_package', ['line 4', 'absent_package']),
        ('return (', ['mine.py', 'SyntaxError']),
        ('config.knn.k = (0.5,)', ['knn.k=(0.5,)', 'integers >= 1']),
    ],
)
def test_mistakes_in_a_configuration_file(written, body, words):
    path = written(body)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    (problem,) = caught.value.problems
    assert all(word.lower() in problem.lower() for word in words), problem
    assert 'checkpoint_keep' not in problem  # names the field at fault, not all fields


def test_files_that_are_no_configuration(tmp_path):
    (tmp_path / 'empty.py').write_text('')
    (tmp_path / 'notes.txt').write_text('batch_size: 256')
    for name, rule in {
        'empty.py': 'defines no get_config',
        'notes.txt': 'Python file',
        'missing.py:r18': 'no file',
        '': 'no file',
    }.items():
        with pytest.raises(ConfigError, match=rule) as caught:
            load_config(str(tmp_path / name))
        assert name in str(caught.value)


@pytest.mark.parametrize('spec', DOCUMENTED)
def test_json_keeps_every_value_and_its_type(spec):
    config = load(spec)
    again = configuration.from_json(configuration.to_json(config))
    assert flatten(again) == flatten(config)
    assert [type(value) for value in flatten(again).values()] == [type(value) for value in flatten(config).values()]
    assert isinstance(again.augment.crop.area, tuple)
    assert again.is_locked


def test_json_of_another_version_is_refused():
    with pytest.raises(ConfigError) as caught:
        configuration.from_json(configuration.to_json(base_config()).replace('"seed"', '"sead"'))
    (unknown,) = caught.value.problems
    assert 'did you mean seed?' in unknown


def test_json_of_an_older_version_has_the_defaults_of_what_is_new():
    config = load('configs/cifar10.py:r18')
    fields = json.loads(configuration.to_json(config))
    del fields['sharding'], fields['model']['remat']
    assert configuration.from_json(json.dumps(fields)) == config


def test_differences_name_the_fields_that_change_the_result():
    saved = load('configs/digits.py')
    wanted = load('configs/digits.py', loss__temperature='0.7', augment__views='crop,crop flip', seed='3')
    assert sorted(configuration.differences(saved, wanted)) == [
        "augment.views: ('crop noise', 'crop noise') -> ('crop', 'crop flip')",
        'loss.temperature: 0.5 -> 0.7',
        'seed: 0 -> 3',
    ]
    assert configuration.differences(saved, saved) == []


def test_what_may_change_between_two_starts():
    """Where the data lie, how often to log, save and evaluate: none of it changes the parameters."""
    free = {
        'knn__k': '7',
        'knn__every_epochs': '3',
        'loss__block_size': '64',
        'log_every_steps': '7',
        'checkpoint_every_steps': '11',
        'checkpoint_keep': '2',
        'data__path': '/elsewhere',
        'data__eval_split': '',
        'data__max_unreadable': '0.5',
    }
    saved = load('configs/digits.py')
    assert configuration.differences(saved, load('configs/digits.py', **free)) == []
    assert all(any(name.startswith(free) for name in flatten(saved)) for free in configuration.FREE_FIELDS)


def test_another_path_is_other_images_except_for_prepared_data_sets():
    for spec, changes in (('configs/folder.py:/a', True), ('configs/cifar10.py', False)):
        found = configuration.differences(load(spec), load(spec, data__path='/b'))
        assert bool(found) == changes
