"""Examples in docstrings: each runs, and gives the result that the docstring shows."""

import doctest
import importlib

import pytest

from support.paths import REPOSITORY

# Packages and modules whose docstrings hold complete examples.
PLACES = ('chips.py', 'config', 'distributed.py', 'losses', 'metrics', 'planning', 'sharding.py')


def modules_with_examples():
    """Names of the modules in PLACES that hold an example."""
    package = REPOSITORY / 'simclr_jax'
    files = [
        file for place in PLACES for file in ([package / place] if '.py' in place else (package / place).glob('*.py'))
    ]
    names = [
        '.'.join(file.relative_to(REPOSITORY).with_suffix('').parts) for file in files if '>>> ' in file.read_text()
    ]
    return sorted(names)


@pytest.mark.parametrize('name', modules_with_examples())
def test_examples(name, monkeypatch):
    # Examples with files name them as a user in a checkout does.
    monkeypatch.chdir(REPOSITORY)
    failed, attempted = doctest.testmod(importlib.import_module(name), verbose=False)
    assert (failed, attempted > 0) == (0, True)
