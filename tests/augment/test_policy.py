"""The augmentation policy's description: defaults, construction from plain values, and its error messages."""

import itertools
import json

import pytest

from simclr_jax.augment import policy


def test_defaults_are_the_papers():
    """Appendix A of 2002.05709, as plain values that a configuration file can show."""
    defaults = policy.default_parameters()
    assert tuple(defaults) == tuple(policy.OPERATIONS)
    assert defaults['crop']['area'] == (0.08, 1.0)
    assert defaults['crop']['aspect'] == (3 / 4, 4 / 3)
    assert defaults['flip'] == {'p': 0.5}
    assert defaults['jitter'] == {
        'p': 0.8,
        'strength': 1.0,
        'brightness': 0.8,
        'contrast': 0.8,
        'saturation': 0.8,
        'hue': 0.2,
        'brightness_mode': 'multiply',
    }
    assert defaults['drop'] == {'p': 0.2}
    assert defaults['blur'] == {'p': 0.5, 'sigma': (0.1, 2.0)}


def test_defaults_pass_their_own_check():
    assert policy.check(224, '', (policy.SIMCLR_VIEW,) * 2, policy.default_parameters()) == []


def test_describing_the_defaults_changes_nothing():
    explicit = policy.make_policy(224, parameters=policy.default_parameters())
    assert explicit == policy.make_policy(224)
    assert explicit.shared == ()
    assert explicit.views[0] == explicit.views[1]
    assert explicit.views[0] == (
        policy.RandomCrop(),
        policy.Flip(),
        policy.ColorJitter(),
        policy.ColorDrop(),
        policy.Blur(),
    )


def test_one_branch_policy_of_figure_5():
    one_branch = policy.make_policy(32, shared='crop', views=('', 'blur sobel'), parameters={'blur': {'p': 1.0}})
    assert one_branch.shared == (policy.RandomCrop(),)
    assert one_branch.views == ((), (policy.Blur(p=1.0), policy.Sobel()))


@pytest.mark.parametrize('names', itertools.product(policy.OPERATIONS, repeat=2))
def test_every_ordered_pair_can_be_written(names):
    (view,) = policy.make_policy(32, views=(' '.join(names),)).views
    assert tuple(type(operation) for operation in view) == tuple(policy.OPERATIONS[name] for name in names)


def test_parameters_survive_json():
    """JSON knows no tuples; a saved configuration must give the same, hashable policy."""
    parameters = json.loads(json.dumps(policy.default_parameters()))
    restored = policy.make_policy(32, views=['crop blur', 'noise'], parameters=parameters)
    assert restored == policy.make_policy(32, views=('crop blur', 'noise'))
    assert hash(restored) == hash(policy.make_policy(32, views=('crop blur', 'noise')))


def test_all_problems_are_reported_at_once():
    with pytest.raises(ValueError) as raised:
        policy.make_policy(
            0,
            shared='crup',
            views=('crop jitter', 'crop jiter'),
            parameters={
                'crop': {'area': (0.0, 1.0), 'aspects': (1.0, 1.0)},
                'jitter': {'p': 1.5, 'hue': 0.6},
                'blurr': {},
            },
        )
    lines = str(raised.value).split('\n')
    assert len(lines) == 8
    expected = (
        ('size=0', 'integer >= 1'),
        ("shared='crup'", "did you mean 'crop'?"),
        ("views[1]='crop jiter'", "did you mean 'jitter'?"),
        ('crop.area=(0.0, 1.0)', '0 < low <= high <= 1'),
        ("'aspects'", "did you mean 'aspect'?"),
        ('jitter.p=1.5', '[0, 1]'),
        ('jitter.hue=0.6', '[0, 0.5]'),
        ("'blurr'", "did you mean 'blur'?"),
    )
    for line, (value, cure) in zip(lines, expected, strict=True):
        assert value in line
        assert cure in line


@pytest.mark.parametrize(
    'operation, values',
    [
        ('flip', {'p': -0.1}),
        ('flip', {'p': float('nan')}),
        ('flip', {'p': True}),
        ('flip', {'p': '0.5'}),
        ('crop', {'area': (0.5, 0.2)}),
        ('crop', {'area': (0.5, 1.1)}),
        ('crop', {'area': 0.5}),
        ('crop', {'aspect': (0.0, 1.0)}),
        ('crop', {'aspect': (1.0, float('inf'))}),
        ('crop', {'attempts': 0}),
        ('crop', {'attempts': 1.5}),
        ('crop', {'min_object_covered': 2}),
        ('jitter', {'strength': -1.0}),
        ('jitter', {'brightness_mode': 'scale'}),
        ('blur', {'sigma': (0.0, 2.0)}),
        ('noise', {'std': (-0.1, 0.1)}),
        ('cutout', {'side': 1.5}),
        ('drop', 0.5),
    ],
)
def test_values_out_of_range_are_one_problem_each(operation, values):
    problems = policy.check(32, '', ('crop',), {operation: values})
    assert len(problems) == 1
    assert problems[0].startswith(operation)


@pytest.mark.parametrize('views', ['crop flip', (), 3, ('crop', None)])
def test_views_are_a_sequence_of_strings(views):
    assert len(policy.check(32, '', views, {})) == 1
