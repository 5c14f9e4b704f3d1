"""Whole trainings of students through the command line: resumed, refused, and evaluated."""

import json
import shutil

import pytest

from simclr_jax import sharding
from simclr_jax.cli.main import main
from simclr_jax.config import ConfigError, with_values
from simclr_jax.report import summary
from simclr_jax.trained import ORIGIN, find_teacher
from simclr_jax.training import workdir
from support.encoders import make_workdir
from support.runs import DIGITS_HERE, assert_same_bits, mesh_of, model_of, rows_of

DISTILL = (
    '--config.task=distill',
    '--config.head.kind=none',
    '--config.augment.views=crop flip',
    '--config.train_steps=6',
)
DISCO = (
    '--config.task=disco',
    '--config.loss.name=info_nce',
    '--config.loss.queue_size=512',
    '--config.loss_scale=1',
    '--config.train_steps=6',
    '--config.checkpoint_every_steps=2',
    '--config.knn.every_epochs=0',
)


def train(path, teacher, *options):
    return main(['train', *DIGITS_HERE, f'--workdir={path}', f'--config.teacher.path={teacher}', *options])


@pytest.fixture(scope='module', autouse=True)
def two_devices():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, 'make_mesh', mesh_of(2))
        yield


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp('teacher') / 'run')


class TestQueue:
    @pytest.fixture(scope='class')
    def finished(self, teacher, tmp_path_factory):
        path = tmp_path_factory.mktemp('disco') / 'run'
        assert train(path, teacher, *DISCO) == 0
        return path

    def test_a_run_resumes_to_the_same_bits_with_a_queue_half_full(self, finished, teacher, tmp_path, capsys):
        """At step 4 the queue of 512 rows holds four batches of 64."""
        again = tmp_path / 'again'
        shutil.copytree(finished, again)
        shutil.rmtree(again / 'checkpoints' / '6')
        # A teacher that has moved is the same teacher.
        moved = tmp_path / 'moved'
        shutil.copytree(teacher, moved)
        assert train(again, moved, *DISCO) == 0
        assert 'Resuming at step 4' in capsys.readouterr().out
        assert_same_bits(model_of(again)[0], model_of(finished)[0])
        sums = [json.loads((path / 'checkpoints/6/meta/metadata').read_text()) for path in (again, finished)]
        assert sums[0] == sums[1]
        assert sums[0].keys() == {'model', 'train', 'teacher'}

    def test_another_teacher_is_refused(self, finished, tmp_path, capsys):
        other = make_workdir(tmp_path / 'other', draw=1)
        again = tmp_path / 'again'
        shutil.copytree(finished, again)
        assert train(again, other, *DISCO) == 2
        message = capsys.readouterr().err
        assert 'the teacher has changed since step 6' in message
        assert 'Traceback' not in message
        # It still names the old teacher.
        assert (again / 'config.json').read_bytes() == (finished / 'config.json').read_bytes()


def test_a_distilled_student_is_evaluated_by_its_own_classifier(teacher, tmp_path, capsys):
    """The field `probe` is about pretrainings. The probe of one has learnt from labels, and is not taken over."""
    student = tmp_path / 'student'
    options = ('--config.model.width=0.0625', '--config.probe=false', f'--config.init_from={teacher}')
    assert train(student, f'{teacher.parent}/r*', *DISTILL, *options) == 0
    told = capsys.readouterr().out
    assert f'Teacher: step 3 of {teacher}, the probe of its pretraining.' in told
    assert f'Initialised from step 3 of {teacher}. Fresh: probe.' in told
    scored = [row for row in rows_of(student) if 'student_top1' in row]
    assert main(['evaluate', f'--workdir={student}', '--protocols=classifier', '--baselines=untrained']) == 0
    result = json.loads((student / 'result.json').read_text())
    found = [score['value'] for score in result['scores'] if score['protocol'] == 'classifier']
    assert found == [pytest.approx(scored[-1]['student_top1'])]
    # The directory's picture has curves of a distillation.
    names = {name for row in rows_of(student) for name in row}
    assert {'distillation_loss', 'accuracy', 'teacher_accuracy', 'agreement', 'student_top1', 'learning_rate'} <= names
    for curves in summary.curves_of(workdir.read_config(str(student)), rows_of(student)).values():
        assert names & curves.keys()


@pytest.mark.parametrize(
    'options, message',
    [
        (('--config.task=distill',), 'set head.kind=none'),
        ((*DISTILL, '--config.distill.alpha=0.5', '--config.distill.labels=0'), 'distill.labels'),
        ((*DISTILL, '--config.teacher.head_layer=7'), 'teacher.head_layer=7'),
        ((*DISTILL, '--config.teacher.head_layer=1'), 'its classifier takes layer 0'),
        ((*DISTILL, '--config.distill.labels=1%'), 'no labels are read'),
        (('--config.task=disco', '--config.head.out_dim=64'), 'set head.out_dim=128'),
        (('--config.task=disco', '--config.head.kind=none'), 'set head.out_dim=128 and head.kind=nonlinear'),
        (('--config.task=simclr',), 'set task=distill or task=disco'),
        ((*DISCO, '--config.loss.queue_size=100'), 'nearest: 64, 128'),
        ((*DISCO, '--config.teacher.path='), "teacher.path=''"),
        ((*DISCO, '--config.teacher.path=/nowhere/*'), 'it matches none'),
        (('--config.loss_scale=0', '--config.teacher.path='), 'task=disco alone'),
        (('--config.loss.name=info_nce', '--config.teacher.path='), 'loss.in_batch=true'),
        (('--config.loss.in_batch=true', '--config.teacher.path='), 'info_nce alone'),
        (('--config.loss.name=margin_triplet', '--config.loss.queue_size=64', '--config.teacher.path='), 'no queue'),
    ],
)
def test_what_does_not_fit_is_told(teacher, tmp_path, capsys, options, message):
    assert train(tmp_path / 'student', teacher, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert 'Traceback' not in error
    assert not (tmp_path / 'student').exists()


def test_converted_weights_need_the_layer_of_their_classifier(teacher, tmp_path, capsys):
    converted = tmp_path / 'converted'
    shutil.copytree(teacher, converted)
    (converted / ORIGIN).write_text('{"source": "model.ckpt-751"}')
    assert train(tmp_path / 'student', converted, *DISTILL) == 2
    assert 'set teacher.head_layer' in capsys.readouterr().err


def test_a_pattern_matches_directories_alone(tmp_path):
    (tmp_path / 'finetune-a').mkdir()
    (tmp_path / 'finetune-b.txt').touch()
    assert find_teacher(f'{tmp_path}/finetune-*') == f'{tmp_path}/finetune-a'
    (tmp_path / 'finetune-c').mkdir()
    with pytest.raises(ConfigError, match=r'matches \S+/finetune-a, \S+/finetune-c'):
        find_teacher(f'{tmp_path}/finetune-*')


def test_a_teacher_of_other_parameters_is_refused(tmp_path, capsys):
    source = make_workdir(tmp_path / 'teacher')
    config = workdir.read_config(str(source))
    assert config.head.kind != 'none'
    assert train(tmp_path / 'student', tmp_path / 'missing', *DISTILL) == 2
    assert 'missing' in capsys.readouterr().err
    # Parameters of another network than the configuration's.
    (source / 'config.json').unlink()
    workdir_claim(source, with_values(config, {'model.width': 0.25}))
    assert train(tmp_path / 'student', source, *DISTILL) == 2
    assert 'choose another teacher' in capsys.readouterr().err


def workdir_claim(path, config):
    """Writes a configuration into a directory that holds a checkpoint."""
    moved = path.parent / 'moved'
    (path / 'checkpoints').rename(moved)
    workdir.claim(str(path), config, allow_change=True)
    moved.rename(path / 'checkpoints')
