"""result.json: scores of several evaluations, damage, places that cannot be written."""

import concurrent.futures
import errno
import json
import os
import threading

import pytest

from simclr_jax.config import ConfigError
from simclr_jax.evaluation import result_file
from simclr_jax.evaluation.result_file import ResultFile, read_results
from simclr_jax.evaluation.results import Results, Score
from simclr_jax.training import lock, workdir


def score(protocol='knn', value=0.5, **fields):
    texts = {'dataset': 'digits', 'detail': '', 'labels': 'all', 'metric': 'top1', 'encoder': 'simclr'}
    return Score(**(texts | {'protocol': protocol, 'value': value} | fields))


def results(*scores, step=8):
    return Results(step, scores, {'digits': 'digits (5)'})


@pytest.fixture
def said():
    return []


@pytest.fixture
def written(tmp_path, said):
    """A directory with one score, and the entry of that score."""
    ResultFile(str(tmp_path), 'digits', said.append).add(results(score('linear', low=0.4, high=0.6)))
    assert not said
    return tmp_path


def spoilt(directory, **fields):
    """Adds an entry with other fields to result.json."""
    content = json.loads((directory / 'result.json').read_text())
    entry = content['scores'][0] | {'protocol': 'svm'} | fields
    (directory / 'result.json').write_text(json.dumps(content | {'scores': [*content['scores'], entry]}))


def test_scores_stay_and_have_headlines(written, said):
    ResultFile(str(written), 'digits', said.append).add(results(score('knn')))
    content = json.loads((written / 'result.json').read_text())
    assert (content['step'], content['linear_top1'], content['knn_top1']) == (8, 0.5, 0.5)
    assert read_results(str(written)).scores == (score('linear', low=0.4, high=0.6), score('knn'))
    assert os.listdir(written) == ['result.json']


def test_two_evaluations_at_once_lose_no_score(tmp_path):
    """Each holds what it has read before the other one wrote, as evaluations do that take hours."""
    start = threading.Barrier(2, timeout=30)

    def evaluate(name):
        file = ResultFile(str(tmp_path), 'digits')
        start.wait()
        return [file.add(results(score(name, detail=f'{number}'))) for number in range(20)][-1]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = list(pool.map(evaluate, ['knn', 'svm']))
    kept = {(s.protocol, s.detail) for s in read_results(str(tmp_path)).scores}
    assert kept == {(name, f'{number}') for name in ('knn', 'svm') for number in range(20)}
    assert all(part.not_kept is None for part in found)
    assert os.listdir(tmp_path) == ['result.json']


def test_an_evaluation_of_an_older_checkpoint_leaves_newer_scores(tmp_path, said):
    older = ResultFile(str(tmp_path), 'digits', said.append)
    ResultFile(str(tmp_path), 'digits').add(results(score('svm'), step=12))
    found = older.add(results(score('knn'), step=8))
    assert found.scores == (score('knn'),)
    assert read_results(str(tmp_path)).step == 12
    assert 'it holds scores of step 12 now, a newer checkpoint' in said[0]
    assert str(found.not_kept) in said[0]
    # A run that has gone back to an older checkpoint since is another matter.
    ResultFile(str(tmp_path), 'digits').add(results(score('knn'), step=8))
    assert read_results(str(tmp_path)).step == 8


@pytest.mark.parametrize(
    'content',
    [b'\xff\xfe\x00', b'', b'null', b'[1]', b'"a"', b'[' * 100_000, b'{}', b'{"step": "8"}', b'{"step": true}'],
)
def test_what_is_no_result_is_set_aside(tmp_path, said, content):
    (tmp_path / 'result.json').write_bytes(content)
    with pytest.raises(ConfigError, match='run: simclr evaluate --workdir='):
        read_results(str(tmp_path))
    file = ResultFile(str(tmp_path), 'digits', said.append)
    assert (tmp_path / 'result.json.damaged').read_bytes() == content
    (line,) = said
    assert line.endswith('0 scores stay, the original is result.json.damaged.')
    file.add(results(score()))
    assert read_results(str(tmp_path)).scores == (score(),)


@pytest.mark.parametrize(
    'fields',
    [
        *({'value': value} for value in ('0.5', None, [0.5], True, 10**400)),
        *({'low': 'x'}, {'high': {}}, {'deviation': '1'}),
        *({name: value} for name in ('dataset', 'labels', 'encoder') for value in (5, None, ['a'])),
        {'unknown': 1},
    ],
)
def test_readable_scores_beside_damaged_ones_stay(written, said, fields):
    spoilt(written, **fields)
    before = (written / 'result.json').read_text()
    found = ResultFile(str(written), 'digits', said.append).add(results(score('knn')))
    assert [s.protocol for s in found.scores] == ['linear', 'knn']
    assert said[0].endswith('(1 of its scores); 1 scores stay, the original is result.json.damaged.')
    assert (written / 'result.json.damaged').read_text() == before
    assert read_results(str(written)) == found


@pytest.mark.parametrize(
    'fields', [{'scores': None}, {'scores': ['a', 3]}, {'datasets': ['a']}, {'datasets': {'a': 1}}]
)
def test_other_damage_is_set_aside_too(written, said, fields):
    content = json.loads((written / 'result.json').read_text())
    (written / 'result.json').write_text(json.dumps(content | fields))
    found = ResultFile(str(written), 'digits', said.append).add(results(score('knn')))
    assert (written / 'result.json.damaged').exists()
    assert len(said) == 1
    assert found.datasets == {'digits': 'digits (5)'}


def test_a_directory_in_its_place_is_set_aside(tmp_path, said):
    (tmp_path / 'result.json').mkdir()
    ResultFile(str(tmp_path), 'digits', said.append).add(results(score()))
    assert (tmp_path / 'result.json.damaged').is_dir()
    assert said == [f'{tmp_path}/result.json is a directory; it is result.json.damaged now.']


@pytest.mark.parametrize('number', [errno.EROFS, errno.EACCES])
def test_a_place_that_cannot_be_written_is_said_at_once_and_the_scores_come_back(written, said, monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock, '_by_the_kernel', refuse)
    file = ResultFile(str(written), 'digits', said.append)
    (line,) = said
    assert line.startswith(f'{written}/result.json cannot be written ({os.strerror(number)}): nothing is kept')
    for name in ('knn', 'svm'):
        found = file.add(results(score(name)))
    assert [s.protocol for s in found.scores] == ['linear', 'knn', 'svm']
    assert (found.not_kept.errno, found.not_kept.filename) == (number, f'{written}/result.json')
    assert len(said) == 1


def test_a_disk_that_is_full_for_a_while_loses_nothing(written, said, monkeypatch):
    file = ResultFile(str(written), 'digits', said.append)
    with monkeypatch.context() as patch:

        def fill(*arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'result.json')

        patch.setattr(workdir, 'write_whole', fill)
        assert file.add(results(score('knn'))).not_kept.errno == errno.ENOSPC
    assert 'No space left on device' in said[0]
    assert read_results(str(written)).scores == (score('linear', low=0.4, high=0.6),)
    assert file.add(results(score('svm'))).not_kept is None
    assert {s.protocol for s in read_results(str(written)).scores} == {'linear', 'knn', 'svm'}


def test_a_lock_that_is_never_released_keeps_the_scores_in_memory(written, said, monkeypatch):
    monkeypatch.setattr(result_file, 'PATIENCE', 0.1)
    file = ResultFile(str(written), 'digits', said.append)
    with lock.Lock(str(written), 'result'):
        found = file.add(results(score('knn')))
    assert {s.protocol for s in found.scores} == {'linear', 'knn'}
    assert 'is in use by another process' in said[0]


def test_measures_without_labels_leave_the_description_of_both_splits(tmp_path):
    file = ResultFile(str(tmp_path), 'digits')
    for text in ('digits/train (9) -> digits/test (5)', 'digits/test (5)'):
        file.add(Results(8, (score(),), {'digits': text}))
        assert read_results(str(tmp_path)).datasets == {'digits': 'digits/train (9) -> digits/test (5)'}
    file.add(Results(8, (score(),), {'digits': 'digits/test (6)'}))
    assert read_results(str(tmp_path)).datasets == {'digits': 'digits/test (6)'}
