"""Commands where TensorFlow is not installed: what needs none runs to its end, the rest names the cure."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator

from support import image_files
from support.drawings import draw_folders
from support.paths import REPOSITORY

# All commands in one process: it compiles their programs once.
pytestmark = pytest.mark.slow

SMALL = [
    '--config.data.image_size=8', '--config.model.depth=6', '--config.model.width=0.0625', '--config.batch_size=16',
    '--config.train_steps=2', '--config.log_every_steps=1', '--config.warmup_epochs=0', '--config.knn.k=2',
]  # fmt: skip
DIGITS = [f'--config={REPOSITORY}/configs/digits.py', *SMALL]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Folders of small images of every format and of several sizes, and an .npz of JPEGs. Each has a damaged image."""
    path = tmp_path_factory.mktemp('data')
    random = np.random.default_rng(0)
    files = []
    for split in ('train', 'test'):
        for number in range(24):
            kind = ('PNG', 'BMP', 'JPEG', 'WEBP', 'GIF')[number % 5]
            folder = path / 'photos' / split / 'ab'[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            (folder / f'{number:02}.{kind.lower()}').write_bytes(image_files.encode(image, kind))
            files.append(image_files.encode(image, 'JPEG'))
    (path / 'sizes').mkdir()
    for number in range(24):
        image = Image.fromarray(random.integers(0, 256, (8 + number % 3, 9, 3), dtype=np.uint8))
        image.save(path / 'sizes' / f'{number:02}.jpg')
    for damaged in (path / 'sizes' / '99.png', path / 'photos' / 'train' / 'a' / '99.png'):
        damaged.write_text('no image')
    files[5] = b''
    draw_folders(path / 'shapes', {'train': 6, 'test': 3}, (16, 20))
    offset = np.cumsum([0, *map(len, files)])
    jpeg = np.frombuffer(b''.join(files), np.uint8)
    np.savez(path / 'jpegs.npz', jpeg=jpeg, offset=offset, label=np.arange(48) % 2)
    return path


@pytest.fixture(scope='module')
def results(data, tmp_path_factory):
    """All commands, run by one process: {name: {'code', 'out', 'err'}}."""
    runs = tmp_path_factory.mktemp('runs')
    folder = [f'--config={REPOSITORY}/configs/folder.py:{data}/photos', *SMALL, '--config.data.max_unreadable=0.1',
              '--config.data.split=train', '--config.data.eval_split=test']  # fmt: skip
    arrays = [*DIGITS, '--config.data.source=arrays', f'--config.data.path={data}/jpegs.npz',
              '--config.data.eval_split=', '--config.data.max_unreadable=0.1']  # fmt: skip
    digits = f'--workdir={runs}/digits'
    commands = {
        'train': ['train', *DIGITS, digits],
        'evaluate': ['evaluate', digits, '--protocols=knn,measures', '--labels=10', '--config.knn.k=2',
                     '--baselines=pixels', '--config.measures.images=64'],
        'embed': ['embed', digits, f'--dataset={data}/photos', f'--out={runs}/photos.npz'],
        'folder': ['train', *folder, f'--workdir={runs}/folder'],
        'sizes': ['train', *folder, f'--config.data.path={data}/sizes', '--config.data.split=',
                  '--config.data.eval_split=', f'--workdir={runs}/sizes'],
        'arrays': ['train', *arrays, '--config.data.feed=decoded', f'--workdir={runs}/arrays'],
        'tfds': ['train', *DIGITS, '--config.data.source=tfds', '--config.data.name=cifar10', f'--workdir={runs}/x'],
        'dataset': ['evaluate', digits, '--protocols=knn', '--dataset=cifar10'],
        'host': ['train', *DIGITS, '--config.data.feed=host', f'--workdir={runs}/x'],
        'segmentation': ['evaluate', digits, '--protocols=segmentation', '--config.segmentation.steps=1',
                         f'--config.segmentation.images={data}/shapes/images/{{split}}',
                         f'--config.segmentation.masks={data}/shapes/masks/{{split}}',
                         '--config.segmentation.image_size=16', '--config.segmentation.channels=4'],
        'finetune': ['evaluate', digits, '--protocols=finetune', '--config.finetune.epochs=1'],
        'export': ['export', digits, '--format=safetensors', f'--out={runs}/out'],
        'convert': ['convert', f'{runs}/out/model.safetensors', f'--out={runs}/converted'],
        'saved_model': ['export', digits, '--format=saved_model', f'--out={runs}/x'],
        'checkpoint': ['convert', str(runs), f'--out={runs}/x'],
    }  # fmt: skip
    script = REPOSITORY / 'tests' / 'support' / 'stand_ins' / 'no_tensorflow.py'
    one_device = os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=1')
    environment = os.environ | {'XLA_FLAGS': one_device, 'PYTHONPATH': str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(list(commands.values()))],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True)) | {'runs': runs}


def assert_ended(result):
    assert result['code'] == 0, result['err']
    assert 'Traceback' not in result['err']


def test_digits_are_trained_and_evaluated(results):
    assert_ended(results['train'])
    assert 'feed: resident' in results['train']['out']
    assert_ended(results['evaluate'])
    result = json.loads((results['runs'] / 'digits' / 'result.json').read_text())
    assert result['step'] == 2
    assert {score['protocol'] for score in result['scores']} >= {'knn', 'measures'}


def test_folders_with_masks_are_segmented(results):
    assert_ended(results['segmentation'])
    result = json.loads((results['runs'] / 'digits' / 'result.json').read_text())
    assert 'segmentation' in {score['protocol'] for score in result['scores']}


def test_weights_go_out_and_in(results):
    assert_ended(results['export'])
    assert_ended(results['convert'])


def test_events_are_written(results):
    events = event_accumulator.EventAccumulator(str(results['runs'] / 'digits' / 'tensorboard'), {'tensors': 0})
    events.Reload()
    assert {'views', 'contrast_loss'} <= set(events.Tags()['tensors'])


def test_the_test_split_of_a_folder_is_embedded(results):
    assert_ended(results['embed'])
    with np.load(results['runs'] / 'photos.npz') as found:
        assert found['features'].shape[0] == 24


@pytest.mark.parametrize('source, name', [('folder', '99.png'), ('sizes', '99.png'), ('arrays', 'jpegs.npz/5')])
def test_folders_and_jpegs_in_arrays_are_trained_on_and_name_what_is_damaged(results, source, name):
    assert_ended(results[source])
    assert f'feed: {"resident" if source == "folder" else "decoded"}' in results[source]['out']
    (line,) = [line for line in results[source]['out'].splitlines() if line.startswith('Skipped')]
    assert line.endswith(name)


@pytest.mark.parametrize(
    'name, subject',
    [
        ('tfds', 'data.source=tfds (data.name=cifar10)'),
        ('dataset', 'data.source=tfds (data.name=cifar10)'),
        ('host', 'data.feed=host'),
        ('finetune', 'the augmentation by the host'),
        ('saved_model', '--format=saved_model'),
        ('checkpoint', "simclr convert of TensorFlow's files"),
    ],
)
def test_what_needs_tensorflow_says_so(results, name, subject):
    assert results[name]['code'] == 2, results[name]
    assert f'{subject} needs tensorflow' in results[name]['err']
    assert "pip install 'simclr_jax[tensorflow]'" in results[name]['err']
    assert 'Traceback' not in results[name]['err']
    assert not (results['runs'] / 'x').exists()
