"""Whole runs through the command line, on real images: training, refusing, evaluating.

On two devices. training/test_step.py runs the step on eight.
"""

import json
import os
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator

from simclr_jax import pretraining, sharding
from simclr_jax.cli.main import main
from simclr_jax.config import load_config
from simclr_jax.data import feed
from simclr_jax.evaluation.extractor import make_baseline, open_extractor
from simclr_jax.training import loop
from simclr_jax.training.lock import Lock
from support.paths import REPOSITORY, SHARED
from support.runs import DIGITS_HERE, assert_same_bits, mesh_of, model_of, rows_of


def train(workdir, *options, base=DIGITS_HERE):
    return main(['train', *base, f'--workdir={workdir}', *options])


def contents_of(directory):
    return {path: path.read_bytes() for path in directory.rglob('*') if path.is_file()}


@pytest.fixture(scope='module', autouse=True)
def two_devices():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, 'make_mesh', mesh_of(2))
        yield


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A finished run; tests leave it as it is."""
    workdir = tmp_path_factory.mktemp('runs') / 'digits'
    assert train(workdir) == 0
    return workdir


class TestFinishedRun:
    def test_metrics_say_what_happened(self, finished):
        training = [row for row in rows_of(finished) if 'loss' in row]
        assert [row['step'] for row in training] == [4, 8, 12]
        names = {
            'contrast_loss', 'contrast_accuracy', 'contrast_entropy', 'alignment', 'uniformity', 'effective_rank',
            'z_std', 'probe_loss', 'probe_accuracy', 'learning_rate', 'images_per_second', 'data_wait_seconds',
            'memory_gib', 'gradient_norm', 'epoch',
        }  # fmt: skip
        for row in training:
            assert names <= row.keys()
            assert all(np.isfinite(row[name]) for name in names)
        assert training[0]['loss'] > training[-1]['loss']

    def test_the_learning_rate_is_the_schedule_of_the_update(self, finished):
        # Four updates of warm-up to 1.0 * 64 / 256, then a cosine over eight updates.
        peak, warmup = 0.25, int(0.2 * 1437 // 64)
        rates = {row['step']: row['learning_rate'] for row in rows_of(finished) if 'learning_rate' in row}
        cosine = {step: peak * 0.5 * (1 + np.cos(np.pi * (step - 1 - warmup) / (12 - warmup))) for step in (8, 12)}
        expected = {4: peak * 3 / warmup, **cosine}
        # The cosine is computed in float32.
        assert rates == pytest.approx(expected, rel=1e-6, abs=peak * 2**-23)

    def test_online_knn(self, finished):
        evaluated = [row for row in rows_of(finished) if 'knn_top1_k20' in row]
        assert [row['step'] for row in evaluated] == [9, 12]
        assert all(0.1 < row['knn_top1_k20'] <= 1 for row in evaluated)

    def test_the_newest_checkpoints_stay(self, finished):
        assert sorted(path.name for path in (finished / 'checkpoints').iterdir()) == ['12', '8']

    def test_tensorboard_has_scalars_and_views(self, finished):
        events = event_accumulator.EventAccumulator(str(finished / 'tensorboard'), {'tensors': 0})
        events.Reload()
        assert {'views', 'contrast_loss'} <= set(events.Tags()['tensors'])

    def test_again_is_nothing_to_do(self, finished, capsys):
        before = (finished / 'metrics.jsonl').read_text()
        assert train(finished) == 0
        assert 'Step 12 of 12 is reached already' in capsys.readouterr().out
        assert (finished / 'metrics.jsonl').read_text() == before

    def test_another_configuration_is_refused(self, finished, capsys):
        assert train(finished, '--config.loss.temperature=0.7', '--config.seed=3') == 2
        message = capsys.readouterr().err
        assert 'loss.temperature: ' in message
        assert '-> 0.7' in message
        assert 'seed: 0 -> 3' in message
        assert '--allow-config-change' in message

    def test_a_change_of_shapes_moves_and_writes_nothing(self, finished, capsys):
        before = contents_of(finished)
        changes = '--config.model.width=0.0625', '--config.optimizer.name=adam', '--config.head.layers=3'
        assert train(finished, *changes, '--allow-config-change') == 2
        message = capsys.readouterr().err
        assert 'belongs to another model or optimiser' in message
        assert f'--config.init_from={finished}' in message
        assert 'Traceback' not in message
        assert contents_of(finished) == before

    def test_a_second_training_in_the_directory_is_refused(self, finished, capsys):
        before = contents_of(finished)
        with Lock(str(finished), 'train'):
            assert train(finished) == 2
        assert f'is in use by another process (process {os.getpid()} on ' in capsys.readouterr().err
        assert contents_of(finished) == before

    def test_without_its_configuration_nothing_starts(self, finished, tmp_path, capsys):
        shutil.copytree(finished, tmp_path / 'run')
        (tmp_path / 'run' / 'config.json').unlink()
        assert train(tmp_path / 'run') == 2
        assert 'but no config.json' in capsys.readouterr().err

    def test_what_changes_no_parameter_may_change(self, finished):
        assert train(finished, '--config.log_every_steps=5', '--config.knn.k=7') == 0


def test_evaluating_what_was_trained(finished):
    """Protocols are tested in evaluation/test_evaluate.py. Here the encoder is trained and has a history to draw."""
    assert main(['evaluate', f'--workdir={finished}', '--protocols=knn', '--config.knn.k=20']) == 0
    result = json.loads((finished / 'result.json').read_text())
    online = rows_of(finished)[-1]['knn_top1_k20']
    assert (result['step'], result['knn_top1']) == (12, pytest.approx(online, abs=1e-6))
    with Image.open(finished / 'report' / 'summary.png') as picture:
        assert picture.width > 800


class TestMistakes:
    def test_a_batch_larger_than_the_data(self, tmp_path, capsys):
        assert train(tmp_path / 'run', '--config.batch_size=2048') == 2
        assert 'batch_size=2048: digits/train has only 1437 images' in capsys.readouterr().err
        assert not (tmp_path / 'run').exists()

    def test_a_batch_that_does_not_divide(self, tmp_path, capsys):
        assert train(tmp_path / 'run', '--config.batch_size=61') == 2
        assert 'does not divide by 2 devices; nearest: 60, 62' in capsys.readouterr().err

    def test_a_loss_that_is_no_number_stops_the_run(self, tmp_path, capsys, monkeypatch):
        """From step 7 on the images are no numbers; step 8 would be saved."""
        host_batches = feed.host_batches

        def spoilt(*arguments, start_step, **settings):
            for step, batch in enumerate(host_batches(*arguments, start_step=start_step, **settings), start_step + 1):
                yield batch | {'views': batch['views'] * np.float32(np.nan if step >= 7 else 1)}

        monkeypatch.setattr(feed, 'host_batches', spoilt)
        assert train(tmp_path / 'run') == 1
        message = capsys.readouterr().err
        assert re.search(r'(loss|gradient_norm) is nan at step 7; stopped', message)
        assert 'the last good checkpoint is of step 4' in message
        assert 'Traceback' not in message
        model, step = model_of(tmp_path / 'run')
        assert step == 4
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model))

    def test_evaluating_without_a_checkpoint(self, finished, tmp_path, capsys):
        (tmp_path / 'config.json').write_text((finished / 'config.json').read_text())
        assert main(['evaluate', f'--workdir={tmp_path}']) == 2
        assert 'there is no checkpoint in' in capsys.readouterr().err


class TestInitFrom:
    def test_the_run_begins_with_the_other_runs_model(self, finished, tmp_path, monkeypatch):
        """What the loop is given to begin with, and hands back here untrained."""
        monkeypatch.setattr(loop, 'train', lambda state, *_, **__: state)
        overrides = [option.removeprefix('--config.').split('=', 1) for option in DIGITS_HERE[1:]]
        config = load_config(DIGITS_HERE[0].removeprefix('--config='), [*overrides, ('init_from', str(finished))])
        found = pretraining.pretrain(config, str(tmp_path / 'run'))
        assert int(found.step) == 0
        model = {'params': found.params, 'batch_stats': found.batch_stats}
        assert_same_bits(jax.device_get(model), model_of(finished)[0])

    def test_the_untrained_baseline_is_what_the_run_began_with(self, finished, tmp_path, monkeypatch):
        monkeypatch.setattr(loop, 'train', lambda state, *_, **__: state)
        overrides = [option.removeprefix('--config.').split('=', 1) for option in DIGITS_HERE[1:]]
        config = load_config(DIGITS_HERE[0].removeprefix('--config='), overrides)
        began = jax.device_get(pretraining.pretrain(config, str(tmp_path / 'run')).params)
        untrained = make_baseline(open_extractor(str(finished))[0], 'untrained')
        for part in ('encoder', 'head'):
            assert_same_bits(jax.device_get(untrained.variables['params'][part]), began[part])

    def test_another_encoder_is_refused(self, finished, tmp_path, capsys):
        assert train(tmp_path / 'run', f'--config.init_from={finished}', '--config.model.width=0.25') == 2
        assert 'its encoder has another shape' in capsys.readouterr().err

    def test_no_work_directory(self, tmp_path, capsys):
        assert train(tmp_path / 'run', f'--config.init_from={tmp_path}') == 2
        assert 'holds no config.json' in capsys.readouterr().err


def test_own_images_without_labels(tmp_path, capsys):
    """A folder of photographs of different sizes, one of them broken: no probe, no kNN, and it trains."""
    random_numbers = np.random.default_rng(0)
    for number in range(40):
        pixels = random_numbers.integers(0, 255, (20 + number % 3, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f'{number}.png')
    (tmp_path / 'broken.jpg').write_text('no image')
    options = [
        '--config.data.image_size=8', '--config.model.depth=6', '--config.model.width=0.125',
        '--config.batch_size=16', '--config.train_steps=3', '--config.log_every_steps=1',
        '--config.warmup_epochs=0', '--config.data.max_unreadable=0.1',
        '--config.head.layers=1', '--config.optimizer.name=momentum',
    ]  # fmt: skip
    workdir = tmp_path / 'run'
    assert train(workdir, *options, base=[f'--config={REPOSITORY}/configs/folder.py:{tmp_path}']) == 0
    output = capsys.readouterr().out
    assert 'no labels' in output
    assert output.count('broken.jpg') == 1
    assert 'probe_loss' not in rows_of(workdir)[-1]
    assert 'probe' not in model_of(workdir)[0]['params']


@pytest.mark.slow
def test_imagenet_recipe_takes_two_steps(tmp_path):
    """The published recipe at 224 pixels, made narrow: real JPEGs through TFDS, bfloat16, ImageNet stem, blur."""
    prepared = SHARED / 'data' / 'tfds'
    if not prepared.exists():
        pytest.skip(f'the ImageNet samples are not prepared at {prepared}')
    arguments = [
        f'--config={REPOSITORY}/configs/imagenet.py:v2,depth=18,width=0.125,batch=4',
        f'--config.data.path={prepared}', '--config.train_steps=2', '--config.log_every_steps=1',
        '--config.knn.every_epochs=0',
    ]  # fmt: skip
    assert train(tmp_path / 'run', base=arguments) == 0
    rows = rows_of(tmp_path / 'run')
    assert [row['step'] for row in rows] == [1, 2]
    assert all(np.isfinite(row['loss']) for row in rows)
