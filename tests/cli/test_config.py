"""`simclr config`: every field with value, default, meaning and accepted values."""

import pytest

from simclr_jax.cli.main import main
from simclr_jax.config import base_config, base_evaluation, flatten
from support.paths import REPOSITORY


@pytest.fixture
def printed(capsys):
    """printed('word', ...) -> the names of the fields that `simclr config` prints, and the whole text."""

    def run(*arguments):
        assert main(['config', *arguments]) == 0
        text = capsys.readouterr().out
        return [line.split(' = ')[0] for line in text.splitlines() if line and line[0] != ' '], text

    return run


@pytest.mark.parametrize('option, fields', [((), base_config()), (('--evaluation',), base_evaluation())])
def test_it_prints_every_field(printed, option, fields):
    names, text = printed(*option)
    assert sorted(names) == sorted(flatten(fields))
    assert text.count('    Accepts: ') == len(names)


def test_values_defaults_and_meaning(printed):
    text = printed(
        f'--config={REPOSITORY}/configs/digits.py', '--config.model.remat=1,2', 'optimizer.name', 'recompute'
    )[1]
    assert text == (
        'model.remat = 1,2 (default: ())\n'
        '    Stages that the backward pass recomputes. This saves memory and costs time.\n'
        '    Accepts: numbers of stages, from 1\n'
        '\n'
        'optimizer.name = adam (default: lars)\n'
        '    Optimizer. momentum is that of Nesterov, sgd the plain one of PyTorch.\n'
        '    Accepts: lars | momentum | sgd | adam\n'
    )


def test_words_are_looked_for_in_names_and_meanings(printed):
    assert printed('NEIGHBOURS')[0] == ['knn.k']
    assert printed('augment.blur')[0] == ['augment.blur.p', 'augment.blur.sigma']
    assert printed('--evaluation', 'SVM.')[0] == ['svm.layers', 'svm.positives', 'svm.samples']


def test_mistakes_are_told(capsys):
    assert main(['config', 'no-such-word']) == 2
    assert 'no-such-word: no field has this in its name or meaning' in capsys.readouterr().err
    assert main(['config', '--config.sede=1']) == 2
    assert 'did you mean seed?' in capsys.readouterr().err
