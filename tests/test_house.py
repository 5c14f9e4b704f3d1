"""The repository is whole: tests share code through support/ alone, and no text refers to what is not there."""

import ast
import re
import subprocess

import pytest

from support.paths import REPOSITORY

TESTS = REPOSITORY / 'tests'
# Beside the clone, optional: data sets and the full set of reference numbers. Everything else lies in the repository.
BESIDE = ('shared/data', 'shared/oracles')


def tracked_texts():
    """Every file of the repository that is text, by its path."""
    listed = subprocess.run(['git', 'ls-files', '-z'], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip('this is not a git repository')
    for name in listed.stdout.rstrip('\0').split('\0'):
        path = REPOSITORY / name
        # A file that was removed but not yet committed is still listed.
        if path.is_file() and path.suffix not in {'.png', '.npz', '.gz'}:
            yield name, path.read_text()


def imported_by(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def test_tests_import_from_support_alone():
    modules = {path.stem for path in TESTS.rglob('test_*.py')} | {'conftest'}
    for path in TESTS.rglob('*.py'):
        shared = [name for name in imported_by(path) if modules & set(name.split('.'))]
        assert not shared, f'{path.relative_to(REPOSITORY)} imports {shared}: move what is shared to tests/support/'


def test_documents_that_are_cited_are_there():
    for name, text in tracked_texts():
        for cited in re.findall(r'(?<![\w/{}$.*-])(?:[\w.-]+/)*[A-Z][A-Z_]*\.md\b', text):
            places = REPOSITORY / cited, (REPOSITORY / name).parent / cited
            assert any(place.is_file() for place in places), f'{name} cites {cited}, which is not in the repository'


def test_nothing_refers_to_a_folder_beside_the_clone_but_to_data_and_reference_numbers():
    for name, text in tracked_texts():
        for path in re.findall(r'\.\./(shared[\w./-]*)', text):
            assert path.startswith(BESIDE), f'{name} refers to ../{path}'
