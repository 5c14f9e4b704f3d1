"""Configurations as Python values: copies with other values, and fields of earlier versions."""

import contextlib
import functools
import json
import math

import pytest

import simclr_jax
from simclr_jax.config import (
    ConfigError,
    base_config,
    base_evaluation,
    evaluation,
    from_json,
    pretraining,
    schema,
    to_json,
    with_values,
)
from simclr_jax.config.fields import defaults


def test_a_copy_with_other_values_leaves_the_original():
    config = base_config()
    changed = with_values(config, {'batch_size': 64, 'data.feed': 'host'})
    assert (changed.batch_size, changed.data.feed) == (64, 'host')
    assert (config.batch_size, config.data.feed) == (4096, 'auto')
    with pytest.raises(KeyError, match='batch'):
        with_values(config, {'batch': 64})


def test_a_field_that_earlier_versions_had_is_not_in_the_way():
    saved = json.loads(to_json(base_config())) | {'steps_per_dispatch': 10}
    assert to_json(from_json(json.dumps(saved))) == to_json(base_config())
    with pytest.raises(ConfigError, match='steps_per_dispatsch'):
        from_json(json.dumps(saved | {'steps_per_dispatsch': 10}))


@pytest.mark.parametrize(
    'text, message',
    [
        ('[' * 100_000, 'nested too deeply'),
        ('{"model":' * 100_000, 'nested too deeply'),
        ('{"seed": ' + '1' * 400 + '}', r'seed=1{60}\.\.\. \(400 characters\): must be below 2\^31'),
        ('{"seed": ' + '1' * 5000 + '}', 'the text is not JSON'),
        ('{"model": {"remat": {"1": 2}}}', r"model.remat=\{'1': 2\}: must be of type tuple"),
        ('{"model": {"remat": [null, {}]}}', r'model.remat=\(None, \{\}\): must be numbers of stages, from 1'),
        ('{"model": null}', 'model=None: model is a group of fields; set one of model.encoder'),
        ('{"model": {"depth": {"a": 1}}}', r"model.depth=\{'a': 1\}: must be of type int"),
        ('{"lock": 1}', 'lock=1: there is no such field'),
        ('null', 'null is not a JSON object'),
    ],
    ids=lambda value: value[:24],
)
def test_a_damaged_configuration_names_the_field(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        from_json(text)
    assert len(caught.value.problems) == 1
    assert len(str(caught.value)) < 1000


WRONG = (None, True, 'x', 10**400, -(10**400), math.nan, math.inf, 1e308, {}, [], [None], [{}], [[1]], [10**400])


@pytest.mark.parametrize('kind', [pretraining.SCHEMA, evaluation.SCHEMA], ids=['pretraining', 'evaluation'])
def test_no_value_in_any_field_is_a_traceback(kind):
    saved = json.loads(to_json(defaults(kind.fields)))
    for name in [*kind.by_name, *kind.groups]:
        *groups, last = name.split('.')
        group = functools.reduce(dict.__getitem__, groups, saved)
        right = group[last]
        for value in WRONG:
            group[last] = value
            with contextlib.suppress(ConfigError):
                schema.from_json(kind, json.dumps(saved))
        group[last] = right


def test_python_callers_are_told_what_is_wrong_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r'loss.temperature=-1.0: must be'):
        simclr_jax.pretrain(with_values(base_config(), {'loss.temperature': -1.0}), str(tmp_path / 'run'))
    with pytest.raises(ConfigError, match=r"protocols=\('knm',\): unknown knm"):
        simclr_jax.evaluate(with_values(base_evaluation(), {'protocols': ('knm',)}), str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()
