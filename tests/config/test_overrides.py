"""Texts of the command line: lists, quotes, and paths with ~."""

import pytest

from simclr_jax.config import ConfigError, load_config, load_evaluation
from simclr_jax.config.overrides import split_list
from simclr_jax.config.paths import directory_path, user_path
from support.paths import REPOSITORY


@pytest.mark.parametrize(
    'text, members',
    [
        ('', []),
        ('()', []),
        ('knn', ['knn']),
        ('knn, linear', ['knn', 'linear']),
        ('rotate,', ['rotate', '']),
        ('""', ['']),
        ("('crop', 'crop flip')", ['crop', 'crop flip']),
        ('"/data/a,b",cifar10', ['/data/a,b', 'cifar10']),
        ("cifar10,'/data/a, b=c'", ['cifar10', '/data/a, b=c']),
        ('/data/[1],/data/(b)', ['/data/[1]', '/data/(b)']),
        ('[1]', ['[1]']),
        ("it's,so", ["it's", 'so']),
        ('"a,b', ['"a', 'b']),
        ('[' * 100_000 + ']' * 100_000, ['[' * 100_000 + ']' * 100_000]),
    ],
    ids=lambda value: str(value)[:24],
)
def test_lists_keep_what_belongs_to_a_name(text, members):
    assert split_list(text) == members


def test_data_sets_with_commas_brackets_and_equals_signs():
    text = '"folder:/data/[lr=0.1], new",/data/(1)/x_{split}.npz'
    config = load_evaluation('', [('datasets', text)])
    assert config.datasets == ('folder:/data/[lr=0.1], new', '/data/(1)/x_{split}.npz')


def test_empty_lists_and_whole_numbers_in_grids():
    grids = [('finetune.grid_learning_rates', '0.1,1'), ('finetune.grid_weight_decays', '0,1e-4')]
    assert load_evaluation('', grids).finetune.grid_learning_rates == (0.1, 1.0)
    grids = [(name, '') for name, _ in grids]
    assert load_evaluation('', grids).finetune.grid_learning_rates == ()
    assert load_evaluation('', [('baselines', '')]).baselines == ()


def test_home_is_expanded_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'mine.py').write_text(
        'from simclr_jax.config import base_config\n'
        'def get_config(arg):\n'
        '    config = base_config()\n'
        "    config.init_from = '~/other'\n"
        '    return config\n'
    )
    config = load_config('~/mine.py', [('data.path', '~/photos')])
    assert (config.data.path, config.init_from) == (f'{tmp_path}/photos', f'{tmp_path}/other')
    assert load_config(f'{REPOSITORY}/configs/folder.py:~/photos').data.path == f'{tmp_path}/photos'
    datasets = load_evaluation('', [('datasets', 'folder:~/a,~/b_{split}.npz,cifar10')]).datasets
    assert datasets == (f'folder:{tmp_path}/a', f'{tmp_path}/b_{{split}}.npz', 'cifar10')


def test_a_path_that_cannot_be_expanded_is_refused():
    with pytest.raises(ConfigError, match=r'~nobody-here/x: there is no home directory ~nobody-here'):
        user_path('~nobody-here/x')
    with pytest.raises(ConfigError, match="'' names no file or directory"):
        directory_path('')
