"""Configurations: their fields with defaults and ranges, and how files and the command line set them."""

from simclr_jax.config.evaluation import base_evaluation, check_evaluation, load_evaluation
from simclr_jax.config.overrides import flatten
from simclr_jax.config.paths import ConfigError
from simclr_jax.config.pretraining import base_config, check, differences, from_json, load_config
from simclr_jax.config.schema import to_json, with_values

__all__ = [
    'ConfigError',
    'base_config',
    'base_evaluation',
    'check',
    'check_evaluation',
    'differences',
    'flatten',
    'from_json',
    'load_config',
    'load_evaluation',
    'to_json',
    'with_values',
]
