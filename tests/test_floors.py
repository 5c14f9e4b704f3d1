"""The architecture: imports point down, methods know no configuration, TensorFlow stays behind its door."""

import ast
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / 'simclr_jax'

# From the lowest floor up: modules, and packages with all that is in them; the longest name counts.
FLOORS = (
    ('config', 'cache', 'augment.policy'),
    ('ops', 'models', 'augment', 'losses', 'metrics', 'sharding', 'distributed', 'chips'),
    ('tasks', 'training', 'data', 'probes'),
    ('build', 'pretraining', 'evaluation', 'embedding', 'planning', 'report', 'interop'),
    ('cli', '__main__'),
)
METHODS = ('ops', 'losses', 'metrics', 'training.optim', 'models', 'augment')
TENSORFLOW_DOOR = {'augment.host', 'data.pipeline', 'data.streams', 'data.tfds'}


def module_name(path):
    """'augment.policy' of simclr_jax/augment/policy.py, 'augment' of its __init__, '' of simclr_jax's."""
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob('*.py'))}
PACKAGES = {name for name, path in SOURCES.items() if path.name == '__init__.py'}


def floor_of(module):
    """Number of the floor; a package's own file is on the lowest, for each of its modules runs it."""
    if module in PACKAGES:
        return 0
    homes = {name: number for number, names in enumerate(FLOORS) for name in names}
    inside = [name for name in homes if f'{module}.'.startswith(f'{name}.')]
    assert inside, f'simclr_jax.{module} is on no floor: say on which, in this file'
    return homes[max(inside, key=len)]


def imported_names(module):
    """All names that a module imports anywhere in it, with dots: 'numpy', 'simclr_jax.data.spec.Batch'."""
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'simclr_jax.{module} imports relatively; write simclr_jax. in full'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def imported_modules(module):
    """The package's modules among them."""
    for name in imported_names(module):
        if name.partition('.')[0] == 'simclr_jax':
            inside = name.removeprefix('simclr_jax').removeprefix('.')
            yield inside if inside in SOURCES else inside.rpartition('.')[0]


@pytest.mark.parametrize('module', SOURCES)
def test_imports_point_down(module):
    for imported in imported_modules(module):
        assert floor_of(imported) <= floor_of(module), f'simclr_jax.{module} imports simclr_jax.{imported}'


@pytest.mark.parametrize('method', METHODS)
def test_methods_take_plain_arguments(method):
    modules = [name for name in SOURCES if f'{name}.'.startswith(f'{method}.')]
    assert modules
    for module in modules:
        text = SOURCES[module].read_text()
        assert 'ConfigDict' not in text
        assert 'ml_collections' not in text
        assert 'config' not in set(imported_modules(module))


def test_only_the_modules_behind_the_door_import_tensorflow():
    importers = {
        module
        for module in SOURCES
        for name in imported_names(module)
        if name.partition('.')[0] in ('tensorflow', 'tensorflow_datasets')
    }
    assert importers == TENSORFLOW_DOOR


# Imports the modules argv[2:] in a process where the packages in argv[1] are not installed.
IMPORT_WITHOUT = """
import importlib, importlib.abc, sys
blocked = set(sys.argv[1].split(','))

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition('.')[0] in blocked:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Blocked())
for module in sys.argv[2:]:
    importlib.import_module(module)
"""


@pytest.mark.parametrize('blocked', ['tensorflow,tensorflow_datasets', 'matplotlib,sklearn,clu,tensorboard,torch'])
def test_all_else_imports_without(blocked):
    modules = [f'simclr_jax.{name}' for name in SOURCES if name not in TENSORFLOW_DOOR | {'', '__main__'}]
    done = subprocess.run(
        [sys.executable, '-c', IMPORT_WITHOUT, blocked, *modules],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, '')
