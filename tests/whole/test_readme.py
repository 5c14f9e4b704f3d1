"""What the README shows runs as it stands there."""

import re
import shlex

import jax
import pytest

from simclr_jax import sharding
from simclr_jax.cli.main import main
from support.paths import REPOSITORY, SHARED
from support.runs import DIGITS_HERE, mesh_of

README = (REPOSITORY / 'README.md').read_text()


def test_python_in_ten_lines(tmp_path, monkeypatch, capsys):
    """With the small run that other tests compile too."""
    pretraining, loss = re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL)
    assert len(pretraining.splitlines()) <= 10
    (tmp_path / 'configs').symlink_to(REPOSITORY / 'configs')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sharding, 'make_mesh', mesh_of(2))
    overrides = [tuple(option.removeprefix('--config.').split('=', 1)) for option in DIGITS_HERE[1:]]
    overrides.append(('knn.every_epochs', '0'))
    smaller = pretraining.replace("'configs/digits.py'", f"'configs/digits.py', {overrides}").replace('60', '12')
    short = [('linear.lambdas', '3'), ('bootstrap_draws', '100')]
    smaller = smaller.replace('load_evaluation()', f"load_evaluation('', {short})")
    assert smaller.count("load_evaluation(''") == 1
    names = {}
    exec(smaller, names)
    exec(loss, names)
    output = capsys.readouterr().out
    assert re.search(r"\{'knn': 0\.\d+, 'linear': 0\.\d+\}", output)
    assert output.endswith(f'(360, {names["extractor"].features(names["images"]).values.shape[1]})\n')
    assert jax.numpy.isfinite(names['loss'])


@pytest.mark.slow
def test_a_student_in_five_commands(tmp_path, monkeypatch, capsys):
    """On CIFAR-10, with small networks and two steps each."""
    data = SHARED / 'data' / 'tfds'
    if not data.is_dir():
        pytest.skip(f'CIFAR-10 is not at {data}')
    section = README.split('### Students')[1]
    commands = re.search(r'```bash\n(.*?)```', section, flags=re.DOTALL)
    assert commands is not None
    lines = commands[1].splitlines()
    assert len(lines) == 5
    short = {
        'train': [
            'data.path=' + str(data),
            'model.depth=6',
            'model.width=0.125',
            'batch_size=16',
            'train_steps=2',
            'knn.every_epochs=0',
        ],
        'evaluate': ['finetune.steps=2', 'finetune.batch_size=16', 'linear.lambdas=3', 'bootstrap_draws=100'],
    }
    (tmp_path / 'configs').symlink_to(REPOSITORY / 'configs')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sharding, 'make_mesh', mesh_of(2))
    for line in lines:
        program, command, *options = shlex.split(line)
        assert program == 'simclr'
        assert main([command, *options, *(f'--config.{option}' for option in short[command])]) == 0, line
    assert 'cifar10, classifier' in capsys.readouterr().out


@pytest.mark.parametrize('path', sorted(set(re.findall(r'\]\(([\w./-]+)\)', README))))
def test_links_lead_somewhere(path):
    assert (REPOSITORY / path).exists()


def test_names_of_files_and_tables_are_those_of_the_package():
    for name in re.findall(r'`((?:augment|config|data|evaluation|losses|tasks)/[\w./]*|build\.py)`', README):
        assert (REPOSITORY / 'simclr_jax' / name).exists(), name
