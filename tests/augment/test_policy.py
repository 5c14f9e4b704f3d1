"""The augmentation policy's description: defaults, construction from plain values, and its error messages."""

import dataclasses
import itertools
import json

import pytest

from simclr_jax.augment import operations, policy


def test_defaults_are_the_papers():
    """Appendix A of 2002.05709, as plain values that a configuration file can show."""
    defaults = policy.default_parameters()
    assert tuple(defaults) == tuple(operations.OPERATIONS)
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


# Numbers of the operations in released versions. Add to this table, never change a number in it.
NUMBERS = {
    'crop': 0,
    'flip': 1,
    'jitter': 2,
    'drop': 3,
    'blur': 4,
    'cutout': 5,
    'rotate': 6,
    'noise': 7,
    'sobel': 8,
}


def test_numbers_of_operations_are_fixed_for_ever():
    """The random draws follow from them: a run that resumes with a newer version must see the same pixels."""
    assert {name: kind.number for name, kind in operations.OPERATIONS.items()} == NUMBERS
    assert len(set(NUMBERS.values())) == len(NUMBERS)
    assert all(0 <= number < operations.REPETITION_STRIDE for number in NUMBERS.values())


def test_every_repetition_of_every_operation_has_a_number_of_its_own():
    repetitions = itertools.product(operations.OPERATIONS.values(), range(20))
    numbers = [operations.operation_number(kind, repetition) for kind, repetition in repetitions]
    assert len(set(numbers)) == len(numbers)


def test_an_added_operation_changes_no_number(monkeypatch):
    """Not even one that stands before the others."""
    before = {kind: operations.operation_number(kind, 1) for kind in operations.OPERATIONS.values()}
    added = dataclasses.make_dataclass('Added', [], frozen=True, namespace={'number': 9, 'uniforms': 1})
    monkeypatch.setattr(operations, 'OPERATIONS', {'added': added, **operations.OPERATIONS})
    assert {kind: operations.operation_number(kind, 1) for kind in before} == before


def test_defaults_pass_their_own_check():
    assert policy.check(224, '', (policy.SIMCLR_VIEW,) * 2, policy.default_parameters()) == []


def test_describing_the_defaults_changes_nothing():
    explicit = policy.make_policy(224, parameters=policy.default_parameters())
    assert explicit == policy.make_policy(224)
    assert explicit.shared == ()
    assert explicit.views[0] == explicit.views[1]
    assert explicit.views[0] == (
        operations.RandomCrop(),
        operations.Flip(),
        operations.ColorJitter(),
        operations.ColorDrop(),
        operations.Blur(),
    )


def test_one_branch_policy_of_figure_5():
    one_branch = policy.make_policy(32, shared='crop', views=('', 'blur sobel'), parameters={'blur': {'p': 1.0}})
    assert one_branch.shared == (operations.RandomCrop(),)
    assert one_branch.views == ((), (operations.Blur(p=1.0), operations.Sobel()))


@pytest.mark.parametrize('names', itertools.product(operations.OPERATIONS, repeat=2))
def test_every_ordered_pair_can_be_written(names):
    (view,) = policy.make_policy(32, views=(' '.join(names),)).views
    assert tuple(type(operation) for operation in view) == tuple(operations.OPERATIONS[name] for name in names)


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
