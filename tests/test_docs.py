"""Examples in docstrings: each runs, and gives the result that the docstring shows."""

import doctest
import importlib

import pytest

from support.paths import REPOSITORY

# Functions and classes that a reader of the package meets first. Each has an example.
SHOWN = (
    'simclr_jax.augment.policy.make_policy',
    'simclr_jax.chips.peak_flops',
    'simclr_jax.config.label_budget.parse_labels',
    'simclr_jax.config.overrides.parse_argument',
    'simclr_jax.config.pretraining.load_config',
    'simclr_jax.distributed.Preemption',
    'simclr_jax.losses.contrastive.nt_xent',
    'simclr_jax.losses.supervised.softmax_cross_entropy',
    'simclr_jax.metrics.classification.average_precision',
    'simclr_jax.metrics.classification.confidence_interval',
    'simclr_jax.metrics.classification.mean_per_class',
    'simclr_jax.metrics.classification.top1',
    'simclr_jax.metrics.representation.alignment',
    'simclr_jax.metrics.representation.effective_rank',
    'simclr_jax.metrics.representation.uniformity',
    'simclr_jax.models.simclr.SimCLR',
    'simclr_jax.planning.topology.parse_topology',
    'simclr_jax.probes.knn.knn_accuracy',
    'simclr_jax.sharding.check_batch_size',
    'simclr_jax.training.schedule.warmup_cosine',
)


def modules_with_examples():
    """Names of the modules that hold an example. Other modules are not imported."""
    files = sorted((REPOSITORY / 'simclr_jax').rglob('*.py'))
    return [
        '.'.join(file.relative_to(REPOSITORY).with_suffix('').parts) for file in files if '>>> ' in file.read_text()
    ]


@pytest.mark.parametrize('name', modules_with_examples())
def test_examples_give_what_they_show(name, monkeypatch):
    # Examples with files name them as a user in a checkout does.
    monkeypatch.chdir(REPOSITORY)
    failed, attempted = doctest.testmod(importlib.import_module(name), verbose=False)
    assert (failed, attempted > 0) == (0, True)


@pytest.mark.parametrize('name', SHOWN)
def test_first_functions_have_an_example(name):
    module, _, function = name.rpartition('.')
    docstring = getattr(importlib.import_module(module), function).__doc__
    assert doctest.DocTestParser().get_examples(docstring)
