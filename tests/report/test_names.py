"""Names of data sets, classes and files with a meaning for consoles, tables or pictures are shown as they are."""

import sys

import numpy as np
import pytest

from simclr_jax.evaluation.results import Results, Score
from simclr_jax.report import neighbours, summary, table
from simclr_jax.training.log import Log

NAME = '[bold]"a" $x^2$ :cat: <b>|*_\n2'
SHOWN = '[bold]"a" $x^2$ :cat: <b>|*_\\n2'
SCORES = (Score(NAME, 'knn', '', 'all', 'top1', 'simclr', 0.5),)
RESULTS = Results(3, SCORES, {NAME: f'{NAME} (5)'})


def test_in_tables():
    assert table.of_encoders(RESULTS).splitlines()[-1].startswith(f'| {SHOWN}, knn, all labels ')
    assert table.of_workdirs({NAME: RESULTS}).splitlines()[0].endswith(f'| {SHOWN} (step 3) |')
    # The escapes of Markdown, read back.
    row = table.of_encoders(RESULTS, markdown=True).splitlines()[-1]
    assert row.startswith(r'| \[bold\]"a" \$x^2\$ :cat: \<b\>\|\*\_\\n2, knn, all labels ')


@pytest.fixture
def axes():
    matplotlib = pytest.importorskip('matplotlib')
    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    yield axes
    pyplot.close(figure)


def test_in_the_picture_of_the_results(axes):
    summary._draw_scores(axes, RESULTS)
    texts = [axes.title, *axes.get_yticklabels()]
    assert [text.get_text() for text in texts] == [f'{SHOWN} (5)', f'{SHOWN}, knn, all labels']
    assert not any(text.get_parse_math() for text in texts)


def test_in_the_picture_of_neighbours(axes):
    neighbours._draw_cell(axes, np.zeros((2, 2, 3), np.uint8), neighbours._shortened('[b]$x$\n".png'), 'black')
    assert axes.title.get_text() == '[b]$x$\\n".png'
    assert not axes.title.get_parse_math()


def test_on_a_terminal_with_a_bar(monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '200')
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    log = Log(None, total_steps=3)
    log.say(f'Skipped: {SHOWN}')
    log.close()
    assert f'Skipped: {SHOWN}' in capsys.readouterr().out
