"""What the README shows runs as it stands there."""

import re

import jax
import pytest

from simclr_jax import sharding
from support.paths import REPOSITORY
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


@pytest.mark.parametrize('path', sorted(set(re.findall(r'\]\(([\w./-]+)\)', README))))
def test_links_lead_somewhere(path):
    assert (REPOSITORY / path).exists()


def test_names_of_files_and_tables_are_those_of_the_package():
    for name in re.findall(r'`((?:augment|config|data|evaluation|losses|tasks)/[\w./]*|build\.py)`', README):
        assert (REPOSITORY / 'simclr_jax' / name).exists(), name
