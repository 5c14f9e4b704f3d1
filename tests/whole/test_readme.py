"""What the README shows runs as it stands there."""

import re

import jax
import pytest

from support.paths import REPOSITORY

README = (REPOSITORY / 'README.md').read_text()


def test_python_in_ten_lines(tmp_path, monkeypatch, capsys):
    """Only shorter and with a smaller network."""
    pretraining, loss = re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL)
    assert len(pretraining.splitlines()) <= 10
    (tmp_path / 'configs').symlink_to(REPOSITORY / 'configs')
    monkeypatch.chdir(tmp_path)
    short = "{'train_steps': 2, 'model.depth': 6, 'data.image_size': 8, 'batch_size': 64, 'warmup_epochs': 0.0}"
    names = {}
    exec(pretraining.replace("{'train_steps': 60}", short), names)
    exec(loss, names)
    output = capsys.readouterr().out
    assert re.search(r"\{'knn': 0\.\d+, 'linear': 0\.\d+\}", output)
    assert output.endswith('(360, 32)\n')
    assert names['loss'].shape == ()
    assert jax.numpy.isfinite(names['loss'])


@pytest.mark.parametrize('path', sorted(set(re.findall(r'\]\(([\w./-]+)\)', README))))
def test_links_lead_somewhere(path):
    assert (REPOSITORY / path).exists()


def test_names_of_files_and_tables_are_those_of_the_package():
    for name in re.findall(r'`((?:augment|config|data|evaluation|losses|tasks)/[\w./]*|build\.py)`', README):
        assert (REPOSITORY / 'simclr_jax' / name).exists(), name
