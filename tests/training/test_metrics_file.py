"""metrics.jsonl: rows without a future, and without the damage of their neighbours."""

import json
import math

import pytest

from simclr_jax.training.log import Log
from simclr_jax.training.metrics_file import MetricsFile, read_metrics


def test_a_resumed_run_forgets_rows_after_its_checkpoint(tmp_path):
    metrics = MetricsFile(str(tmp_path))
    metrics.forget_after(0)  # nothing is there yet
    for step in (10, 20, 20, 30, 40):
        metrics.write(step, {'loss': step / 2})
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 50, "lo')
    log = Log(str(tmp_path), total_steps=100)
    log.resume(20)
    log.scalars(21, {'loss': 1.0})
    log.close()
    rows = read_metrics(str(tmp_path / 'metrics.jsonl'))
    assert rows == [
        {'step': 10, 'loss': 5.0},
        {'step': 20, 'loss': 10.0},
        {'step': 20, 'loss': 10.0},
        {'step': 21, 'loss': 1.0},
    ]
    assert [file.name for file in tmp_path.iterdir()] == ['metrics.jsonl']


def test_a_last_line_cut_short_is_dropped_though_no_row_is_too_new(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 10, "loss": 5.0}\n{"step": 1')
    MetricsFile(str(tmp_path)).forget_after(1000)
    assert path.read_text() == '{"step": 10, "loss": 5.0}\n'


def test_numbers_that_are_not_finite_become_null(tmp_path):
    MetricsFile(str(tmp_path)).write(3, {'loss': math.nan, 'rank': math.inf, 'std': 1 / 3})

    def refuse(constant):
        raise AssertionError(f'{constant} is not JSON')

    text = (tmp_path / 'metrics.jsonl').read_text()
    row = json.loads(text, parse_constant=refuse)
    assert text.endswith('\n')
    assert row['loss'] is None
    assert row['rank'] is None
    # Seven significant digits are what a float32 holds.
    assert row['std'] == pytest.approx(1 / 3, rel=1e-6)


@pytest.mark.parametrize(
    'damage',
    [b'', b'{"step": 1', b'\x00\x00\x00', b'\xff\xfe', b'[1, 2]', b'null', b'"step"', b'{"loss": 1.0}',
     b'{"step": null}', b'{"step": "2"}', b'{"step": true}', b'[' * 100_000, b'{"step": ' + b'9' * 5000 + b'}'],
)  # fmt: skip
def test_a_damaged_line_takes_no_other_with_it(tmp_path, damage):
    path, said = tmp_path / 'metrics.jsonl', []
    original = b'{"step": 10}\n' + damage + b'\n{"step": 20}\n{"step": 30}\n'
    for name in 'metrics.jsonl.damaged', 'metrics.jsonl.damaged.1':
        path.write_bytes(original)
        assert read_metrics(str(path)) == [{'step': 10}, {'step': 20}, {'step': 30}]
        MetricsFile(str(tmp_path)).forget_after(20, said.append)
        assert path.read_text() == '{"step": 10}\n{"step": 20}\n'
        assert (tmp_path / name).read_bytes() == original
        assert said.pop() == f'{path}: 1 lines cannot be read; 2 rows stay, the original is {name}.'
    # What was mended is not mended again.
    MetricsFile(str(tmp_path)).forget_after(20, said.append)
    assert said == []


def test_a_directory_in_its_place_is_set_aside(tmp_path):
    path, said = tmp_path / 'metrics.jsonl', []
    (path / 'inside').mkdir(parents=True)
    assert read_metrics(str(path)) == []
    metrics = MetricsFile(str(tmp_path))
    metrics.forget_after(20, said.append)
    metrics.write(21, {'loss': 1.0})
    assert said == [f'{path} is a directory; it is metrics.jsonl.damaged now.']
    assert (tmp_path / 'metrics.jsonl.damaged' / 'inside').is_dir()
    assert read_metrics(str(path)) == [{'step': 21, 'loss': 1.0}]


def test_a_run_that_starts_again_keeps_the_rows_of_the_one_before(tmp_path):
    path, said = tmp_path / 'metrics.jsonl', []
    path.write_text('{"step": 10}\n{"step": 20}\n')
    MetricsFile(str(tmp_path)).forget_after(0, said.append)
    assert said == [f'{path} has rows up to step 20; it is metrics.jsonl.old now.']
    assert [row['step'] for row in read_metrics(str(tmp_path / 'metrics.jsonl.old'))] == [10, 20]
    assert read_metrics(str(path)) == []


def test_an_editor_that_leaves_out_the_last_line_end_costs_no_row(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 10}\n{"step": 20}')
    metrics = MetricsFile(str(tmp_path))
    metrics.forget_after(20)
    metrics.write(21, {})
    assert [row['step'] for row in read_metrics(str(path))] == [10, 20, 21]
