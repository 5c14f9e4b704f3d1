"""The Colab notebooks: run from top to bottom as a user would, on digits, one after the other."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from matplotlib import colormaps
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from simclr_jax.config import load_config
from support.paths import REPOSITORY
from support.runs import DIGITS, rows_of

FOLDER = REPOSITORY / 'launch' / 'colab'
NAMES = ('pretrain', 'evaluate')
WORKDIR = 'my runs/digits'


def read(name):
    return nbformat.read(FOLDER / f'{name}.ipynb', as_version=nbformat.NO_CONVERT)


def cell_of(notebook, cell_id):
    return next(cell for cell in notebook.cells if cell.id == cell_id)


def fill_in(notebook, **values):
    """Sets fields of the form."""
    form = cell_of(notebook, 'parameters')
    for name, value in values.items():
        field = re.compile(rf'^{name} = .*(?=  # @param )', re.MULTILINE)
        form.source, count = field.subn(lambda _, text=f'{name} = {value!r}': text, form.source)
        assert count == 1, f'there is no field {name}'


def execute(notebook, directory, **environment):
    """Runs a notebook in a kernel and a directory of its own, with one device."""
    inherited = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    client = NotebookClient(notebook, timeout=None, kernel_name='python3')
    # Threads of t-SNE that wait for each other by spinning take many times as long on a busy machine.
    client.execute(cwd=str(directory), env=inherited | {'OMP_NUM_THREADS': '1'} | environment)
    return notebook


def text_of(cell):
    return ''.join(output.text for output in cell.outputs if output.output_type == 'stream')


def pictures_of(cell):
    """The PNG files that a cell shows."""
    shown = [output.data for output in cell.outputs if 'data' in output]
    return [base64.b64decode(data['image/png']) for data in shown if 'image/png' in data]


def pixels_of(picture):
    """uint8 [H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert('RGB'))


class TestFiles:
    @pytest.mark.parametrize('name', NAMES)
    def test_format(self, name):
        notebook = read(name)
        nbformat.validate(notebook)
        assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)

    @pytest.mark.parametrize('name', NAMES)
    def test_no_traces_of_a_run(self, name):
        for cell in read(name).cells:
            assert not cell.get('outputs')
            assert cell.get('execution_count') is None
            assert not cell.metadata

    def test_both_are_set_up_alike(self):
        first, second = (cell_of(read(name), 'set-up').source for name in NAMES)
        assert first == second

    @pytest.mark.parametrize('platform, epochs', [('tpu', 100), ('gpu', 100), ('cpu', 2)])
    def test_each_device_has_its_recipe(self, platform, epochs, tmp_path):
        """Which is a configuration, and fits the eight devices of the largest single host."""
        python = tmp_path / 'python'
        python.write_text(f'#!/bin/sh\necho a warning >&2\necho {platform} 8 Some chip\n')
        python.chmod(0o755)
        space = {'config': '', 'options': '', 'python': python, 'subprocess': subprocess}
        exec(cell_of(read('pretrain'), 'device').source, space)
        spec, *options = space['recipe']
        overrides = [option.removeprefix('--config.').split('=', 1) for option in options]
        config = load_config(f'{REPOSITORY}/{spec}', overrides)
        assert (config.data.name, config.train_epochs, config.batch_size % 8) == ('cifar10', epochs, 0)


@pytest.fixture(scope='module')
def runtime(tmp_path_factory):
    """A directory as Colab's /content: the uploaded zip file, and the environment as if it were installed."""
    content = tmp_path_factory.mktemp('my content')
    tree = content / 'uploaded' / 'simclr_jax-main'
    shutil.copytree(REPOSITORY / 'configs', tree / 'configs')
    shutil.copy(REPOSITORY / 'setup.py', tree)
    shutil.make_archive(str(content / 'code'), 'zip', content / 'uploaded')
    (content / 'simclr_environment').symlink_to(sys.prefix)
    return content


@pytest.fixture(scope='module')
def pretrained(runtime):
    """pretrain.ipynb after its run."""
    notebook = read('pretrain')
    fill_in(notebook, source='code.zip', workdir=WORKDIR, config='configs/digits.py', options=' '.join(DIGITS[1:]))
    return execute(notebook, runtime)


@pytest.fixture(scope='module')
def evaluated(runtime, pretrained):
    """evaluate.ipynb after its run, on the work directory of the other."""
    notebook = read('evaluate')
    short = '--baselines=pixels --config.linear.lambdas=5 --config.bootstrap_draws=100'
    fill_in(notebook, source='code.zip', workdir=WORKDIR, labels='all', options=short)
    return execute(notebook, runtime)


@pytest.mark.slow
class TestPretrain:
    def test_it_says_what_it_found_and_does(self, pretrained):
        text = text_of(cell_of(pretrained, 'device'))
        assert text.splitlines()[0] == 'cpu 1 cpu'
        assert 'simclr train configs/digits.py --config.model.width=' in text

    def test_the_run_is_in_the_work_directory(self, pretrained, runtime):
        assert 'step 12/12' in text_of(cell_of(pretrained, 'train'))
        assert rows_of(runtime / WORKDIR)[-1]['step'] == 12

    @pytest.mark.parametrize('cell', ['curves', 'views'])
    def test_pictures(self, pretrained, cell):
        (picture,) = pictures_of(cell_of(pretrained, cell))
        assert pixels_of(picture).std() > 20


@pytest.mark.slow
class TestEvaluate:
    def test_the_table(self, evaluated, runtime):
        result = json.loads((runtime / WORKDIR / 'result.json').read_text())
        assert {score['protocol'] for score in result['scores']} == {'knn', 'linear'}
        (output,) = cell_of(evaluated, 'results').outputs
        assert 'digits, linear, all labels' in output.data['text/markdown']

    def test_the_map_shows_every_class(self, evaluated):
        (picture,) = pictures_of(cell_of(evaluated, 'map'))
        colors = {tuple(color) for color in np.unique(pixels_of(picture).reshape(-1, 3), axis=0)}
        of_classes = np.round(255 * np.array(colormaps['tab10'].colors)).astype(int)
        assert colors >= {tuple(color) for color in of_classes}

    @pytest.mark.parametrize(
        'cell, file', [('summary', f'{WORKDIR}/report/summary.png'), ('neighbours', 'neighbours.png')]
    )
    def test_pictures_of_the_program(self, evaluated, runtime, cell, file):
        (picture,) = pictures_of(cell_of(evaluated, cell))
        assert picture == (runtime / file).read_bytes()
        assert pixels_of(picture).std() > 20


# A build back end, in the tree itself: its package has a program `simclr` that prints its surroundings.
BACK_END = """
import sys, zipfile

def build_wheel(directory, config_settings=None, metadata_directory=None, name='simclr_jax', version='0.1'):
    file = f'{name}-{version}-py3-none-any.whl'
    parts = {
        f'{name}.py': 'import os, sys\\ndef main(): print(*sys.argv[1:], sys.prefix, os.environ.get("MPLBACKEND"))',
        f'{name}-{version}.dist-info/METADATA': f'Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n'
        + ('Provides-Extra: tensorflow\\nRequires-Dist: jax; extra == "tensorflow"\\n' if name != 'jax' else ''),
        f'{name}-{version}.dist-info/WHEEL': 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n',
        f'{name}-{version}.dist-info/entry_points.txt': f'[console_scripts]\\nsimclr={name}:main\\n',
        f'{name}-{version}.dist-info/RECORD': '',
    }
    with zipfile.ZipFile(f'{directory}/{file}', 'w') as wheel:
        for path, text in parts.items():
            wheel.writestr(path, text)
    return file
"""


@pytest.fixture
def repository(tmp_path):
    """A git repository with a small package of the same name, and its lock; the index has another, newer JAX too."""
    tree, index = tmp_path / 'tree', tmp_path / 'index'
    tree.mkdir()
    index.mkdir()
    (tree / 'back_end.py').write_text(BACK_END)
    backend = '[build-system]\nrequires = []\nbuild-backend = "back_end"\nbackend-path = ["."]\n'
    (tree / 'pyproject.toml').write_text(backend)
    (tree / 'setup.py').touch()
    (tree / 'constraints').mkdir()
    version = f'{sys.version_info.major}{sys.version_info.minor}'
    (tree / 'constraints' / f'py{version}.txt').write_text('jax==1.0\n')
    space = {}
    exec(BACK_END, space)
    for version in ('1.0', '2.0'):
        space['build_wheel'](index, name='jax', version=version)
    for command in (['init', '--quiet'], ['add', '.'], ['commit', '--quiet', '--message=all']):
        subprocess.run(['git', '-c', 'user.name=x', '-c', 'user.email=x@y', *command], cwd=tree, check=True)
    return tree, index


class TestSetUp:
    @pytest.fixture
    def set_up(self, tmp_path):
        """set_up(source, ...) -> what the set-up says, run in an empty directory."""

        def run(source, **environment):
            notebook = read('pretrain')
            fill_in(notebook, source=source)
            last = [cell.id for cell in notebook.cells].index('set-up')
            del notebook.cells[last + 1 :]
            content = tmp_path / 'my content'
            content.mkdir(exist_ok=True)
            return text_of(execute(notebook, content, **environment).cells[last])

        return run

    def test_it_installs_the_locked_versions_beside_the_runtime(self, set_up, repository, tmp_path):
        tree, index = repository
        offline = {'PIP_NO_INDEX': '1', 'PIP_FIND_LINKS': str(index), 'MPLBACKEND': 'module://of_the_notebook'}
        environment = tmp_path / 'my content' / 'simclr_environment'
        text = set_up(f'file://{tree}', **offline)
        assert text.startswith('Installing simclr_jax[tensorflow]')
        assert text.endswith(f'--version {environment} None\n')
        assert [path.name for path in environment.rglob('jax-*.dist-info')] == ['jax-1.0.dist-info']
        # The second time there is nothing to do.
        assert set_up('gone', **offline) == f'--version {environment} None\n'

    @pytest.mark.parametrize(
        'source, words',
        [
            ('gone.zip', "source='gone.zip': there is no such file; upload it, or give the URL"),
            ('file:///gone.git', 'git clone ended with exit code 128'),
        ],
    )
    def test_a_mistake_stops_it(self, set_up, source, words):
        with pytest.raises(CellExecutionError, match=re.escape(words)):
            set_up(source)
