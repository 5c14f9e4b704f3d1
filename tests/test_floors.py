"""The architecture: imports point down, methods know no configuration, TensorFlow stays behind its door."""

import ast
import graphlib
import subprocess
import sys

import pytest

from support.paths import REPOSITORY

PACKAGE = REPOSITORY / 'simclr_jax'

# First-level names, from the lowest floor up. An import goes to a lower floor or stays in its package.
FLOORS = (
    ('chips', 'cache', 'exits', 'sharding', 'ops', 'augment'),
    ('config', 'liveness', 'losses', 'metrics', 'models'),
    ('distributed', 'probes', 'data'),
    ('training',),
    ('tasks',),
    ('networks',),
    ('build',),
    ('trained',),
    ('evaluation', 'planning'),
    ('pretraining', 'report'),
    ('interop',),
    ('cli',),
    ('__main__',),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
METHODS = ('ops', 'losses', 'metrics', 'models', 'probes', 'augment', 'training.optim')
TENSORFLOW_DOOR = {
    *('augment.host', 'data.packing', 'data.pipeline', 'data.streams', 'data.tfds'),
    *('interop.saved_model', 'interop.tf1', 'interop.tf1_network', 'interop.tf2'),
}

# Files that `simclr export` puts beside weights for PyTorch.
PYTORCH_DOOR = {'interop.simclr_inverted', 'interop.simclr_resnet'}


def module_name(path):
    """'augment.policy' of simclr_jax/augment/policy.py, 'augment' of its __init__, '' of simclr_jax's."""
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob('*.py'))}


def imported_names(module):
    """All names that a module imports anywhere in it, with dots: 'numpy', 'simclr_jax.data.spec.Batch'."""
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'simclr_jax.{module} imports relatively; write simclr_jax. in full'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def imported_rooms(module):
    """First-level names of the package that a module imports."""
    return {name.split('.')[1] for name in imported_names(module) if name.startswith('simclr_jax.')}


@pytest.mark.parametrize('module', [name for name in SOURCES if name])
def test_imports_point_down(module):
    room = module.partition('.')[0]
    assert room in FLOOR, f'simclr_jax/{room} is on no floor: name its floor in this file'
    for imported in imported_rooms(module) - {room, '__version__'}:
        assert FLOOR[imported] < FLOOR[room], f'simclr_jax.{module} imports {imported}, which is not below {room}'


def test_first_level_names_have_no_circle():
    graph = {}
    for module in filter(None, SOURCES):
        room = module.partition('.')[0]
        graph.setdefault(room, set()).update(imported_rooms(module) - {room, '__version__'})
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_the_root_has_few_modules():
    roots = {path.stem for path in PACKAGE.glob('*.py')}
    modules = {'build', 'cache', 'chips', 'distributed', 'exits', 'liveness', 'networks', 'pretraining', 'sharding'}
    assert roots == {'__init__', '__main__', 'trained', *modules}


@pytest.mark.parametrize('method', METHODS)
def test_methods_take_plain_arguments(method):
    modules = [name for name in SOURCES if f'{name}.'.startswith(f'{method}.')]
    assert modules
    for module in modules:
        text = SOURCES[module].read_text()
        assert 'ConfigDict' not in text
        assert 'ml_collections' not in text
        assert 'config' not in imported_rooms(module)


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


def test_all_else_imports_without_them_and_what_is_imported_late():
    blocked = 'tensorflow,tensorflow_datasets,matplotlib,sklearn,clu,tensorboard,torch'
    modules = [
        f'simclr_jax.{name}' for name in SOURCES if name not in TENSORFLOW_DOOR | PYTORCH_DOOR | {'', '__main__'}
    ]
    done = subprocess.run(
        [sys.executable, '-c', IMPORT_WITHOUT, blocked, *modules],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, '')
