"""Configurations as Python values: copies with other values, and fields of earlier versions."""

import json

import pytest

import simclr_jax
from simclr_jax.config import ConfigError, base_config, base_evaluation, from_json, to_json, with_values


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


def test_python_callers_are_told_what_is_wrong_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r'loss.temperature=-1.0: must be'):
        simclr_jax.pretrain(with_values(base_config(), {'loss.temperature': -1.0}), str(tmp_path / 'run'))
    with pytest.raises(ConfigError, match=r"protocols=\('knm',\): unknown knm"):
        simclr_jax.evaluate(with_values(base_evaluation(), {'protocols': ('knm',)}), str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()
