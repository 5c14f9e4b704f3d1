"""Data sets of an evaluation: what is opened without labels, and names that are too long for a file."""

import types

import numpy as np
import pytest
from PIL import Image

from simclr_jax.config import base_config, with_values
from simclr_jax.config.label_budget import Labels
from simclr_jax.data.spec import DataError, Decoded, Examples
from simclr_jax.evaluation import extractor
from simclr_jax.evaluation.datasets import open_dataset, open_images
from simclr_jax.evaluation.protocols import on_features
from simclr_jax.evaluation.results import Score


@pytest.fixture
def home(tmp_path):
    """The group `data` of a pretraining on a folder without labels and splits."""
    (tmp_path / 'photos').mkdir()
    for name in ('a.png', 'b.png', 'notes.txt'):
        Image.new('RGB', (4, 4)).save(tmp_path / 'photos' / name, format='PNG')
    fields = {'data.source': 'folder', 'data.path': f'{tmp_path}/photos', 'data.split': '', 'data.eval_split': ''}
    return with_values(base_config(), fields).data


@pytest.mark.parametrize('given', ['', 'folder:{path}', '{path}'])
def test_images_without_labels_and_splits_can_be_measured(home, given):
    dataset = open_images(given.format(path=home.path), home)
    assert (dataset.train, dataset.test.size, dataset.num_classes) == (dataset.test, 2, 0)
    assert dataset.description == f'{home.path} (2)'
    assert dataset.notes == [f'{home.path}: left out 1 files that are no images (.txt).']


def test_protocols_with_labels_say_which_one_needs_none(home):
    with pytest.raises(DataError, match=r"data.eval_split='': .* choose a --dataset, or --protocols=measures"):
        open_dataset('', home)


def test_names_of_any_length_become_names_of_files():
    names = ['/deep' * 200, '/deep' * 201, '/a_b', '/a/b', '/写真' * 100, 'caf\udce9']
    found = [
        extractor._file_name(Examples(name, 1, Decoded(np.zeros((1, 2, 2, 3), np.uint8)), None, ())) for name in names
    ]
    assert len(set(found)) == len(names)
    assert all(len(name.encode(errors='surrogateescape')) < 200 and '/' not in name for name in found)


def test_numbers_of_neighbours_above_the_bank_are_said(monkeypatch):
    """With five labels, k = 10 and 20 are both measured as k = 5."""
    monkeypatch.setattr(
        on_features,
        '_scores',
        lambda protocol, *_: [
            Score('mine', protocol, detail, 'all', 'top1', 'simclr', 1.0) for detail in ('k=2', 'k=5')
        ],
    )
    said = []
    measurement = types.SimpleNamespace(
        config=types.SimpleNamespace(knn=types.SimpleNamespace(k=(2, 10, 20))),
        dataset=types.SimpleNamespace(name='mine', metric='top1'),
        labels=Labels(),
        say=said.append,
    )
    on_features.knn(measurement)
    (line,) = said
    assert line.startswith('knn.k=10,20: ')
    assert 'with all labels; measured with k=5 instead' in line
    # Five labels of each class are a rule of the protocol, and named in the table.
    measurement.labels = Labels(per_class=5)
    on_features.knn(measurement)
    assert said == [line]
