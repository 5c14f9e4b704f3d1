"""The life of a run on gs://, with a storage on loopback: killed, resumed, evaluated, embedded, fine-tuned."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator

from support import image_files
from support.paths import REPOSITORY, SHARED
from support.storage import Storage

# One fixture runs all commands, which takes minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SMALL = [
    '--config.data.image_size=8', '--config.model.depth=6', '--config.model.width=0.0625', '--config.batch_size=16',
    '--config.log_every_steps=1', '--config.warmup_epochs=0', '--config.knn.k=2', '--config.knn.bank_images=32',
    '--config.data.max_unreadable=0.1',
]  # fmt: skip
DIGITS = [f'--config={REPOSITORY}/configs/digits.py', *SMALL]
LONG = [*DIGITS, '--config.train_steps=12', '--config.checkpoint_every_steps=3']
SHORT = '--config.train_steps=2'
STAND_INS = REPOSITORY / 'tests' / 'support' / 'stand_ins'
TFDS = SHARED / 'data' / 'tfds' / 'fashion_mnist' / '3.0.1'


@pytest.fixture(scope='module')
def storage(tmp_path_factory):
    """Buckets for runs and data: a folder with a damaged image, arrays, and a data set of TFDS."""
    random = np.random.default_rng(0)
    with Storage(tmp_path_factory.mktemp('storage'), 'runs', 'data') as storage:
        for split in ('train', 'test'):
            # The console of Google makes such an object for a folder.
            storage.put('data', f'photos/{split}/', b'')
            for number in range(24):
                image = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                storage.put(
                    'data', f'photos/{split}/{"ab"[number % 2]}/{number:02}.png', image_files.encode(image, 'PNG')
                )
            file = io.BytesIO()
            np.savez(file, image=random.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8), label=np.arange(32) % 2)
            storage.put('data', f'arrays_{split}.npz', file.getvalue())
        storage.put('data', 'photos/train/a/99.png', b'no image')
        for file in TFDS.glob('*'):
            storage.put('data', f'tfds/fashion_mnist/{TFDS.name}/{file.name}', file.read_bytes())
        yield storage


@pytest.fixture(scope='module')
def environment(storage):
    one_device = os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=1')
    return os.environ | storage.environment() | {'XLA_FLAGS': one_device, 'PYTHONPATH': str(REPOSITORY)}


def run_all(script, commands, environment):
    """Runs commands in one process: {name: {'code', 'out', 'err'}}."""
    done = subprocess.run(
        [sys.executable, str(STAND_INS / script), json.dumps([*commands.values()])],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True))


def kill_a_run(storage, environment):
    """Starts a run and kills it without warning when its first checkpoint is complete."""
    command = [sys.executable, '-m', 'simclr_jax', 'train', *LONG, '--workdir=gs://runs/killed']
    process = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while 'killed/checkpoints/3/commit_success.txt' not in storage.objects['runs']:
        assert process.poll() is None, 'the run ended before it was killed'
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 'killed/train.lock' in storage.objects['runs']


@pytest.fixture(scope='module')
def life(storage, environment, tmp_path_factory):
    """All commands with TensorFlow, the first after a SIGKILL."""
    kill_a_run(storage, environment)
    undisturbed = tmp_path_factory.mktemp('local')
    folder = [f'--config={REPOSITORY}/configs/folder.py:gs://data/photos', *SMALL, SHORT, '--config.data.split=train',
              '--config.data.eval_split=test']  # fmt: skip
    run, photos = '--workdir=gs://runs/killed', '--dataset=gs://data/photos'
    commands = {
        'resume': ['train', *LONG, run],
        'local': ['train', *LONG, f'--workdir={undisturbed}'],
        'evaluate': ['evaluate', run, '--protocols=knn', '--config.knn.k=2'],
        'arrays': ['evaluate', run, '--protocols=knn', '--config.knn.k=2', '--dataset=gs://data/arrays_{split}.npz'],
        'init_from': ['train', *folder, '--workdir=gs://runs/folder', '--config.init_from=gs://runs/killed'],
        'finetune': ['evaluate', '--workdir=gs://runs/folder', '--protocols=finetune', '--labels=10',
                     '--config.finetune.steps=2'],
        'compare': ['evaluate', '--compare', 'gs://runs/killed', 'gs://runs/folder'],
        'embed': ['embed', '--workdir=gs://runs/folder', photos, '--split=train', '--out=gs://runs/own/photos.npz',
                  '--neighbours=gs://data/photos/test/a/00.png'],
        'pack': ['pack', 'gs://data/photos', '--out=gs://runs/packed', '--side=16', '--max-unreadable=0.1'],
        'packed': ['train', f'--config={REPOSITORY}/configs/folder.py:gs://runs/packed', *SMALL, SHORT,
                   '--config.data.source=packed', '--config.data.split=train', '--config.data.eval_split=test',
                   '--config.data.feed=decoded', '--workdir=gs://runs/of_packed'],
        'embed packed': ['embed', '--workdir=gs://runs/of_packed', '--dataset=gs://runs/packed', '--split=train',
                         '--out=gs://runs/own/packed.npz'],
        'missing': ['evaluate', run, '--protocols=knn', '--dataset=gs://data/none'],
        'no bucket': ['train', *DIGITS, SHORT, '--workdir=gs://none/run'],
    }  # fmt: skip
    if TFDS.exists():
        commands['tfds'] = [
            'train', f'--config={REPOSITORY}/configs/cifar10.py:cpu', *SMALL, SHORT, '--workdir=gs://runs/tfds',
            '--config.data.name=fashion_mnist', '--config.data.path=gs://data/tfds', '--config.knn.every_epochs=0',
        ]  # fmt: skip
    return run_all('commands.py', commands, environment) | {'undisturbed': undisturbed}


@pytest.fixture(scope='module')
def plain_life(storage, environment):
    """The commands that need no TensorFlow, where it is not installed."""
    run, photos = '--workdir=gs://runs/plain', 'gs://data/photos'
    folder = [f'--config={REPOSITORY}/configs/folder.py:{photos}', *SMALL, '--config.data.split=train',
              '--config.data.eval_split=test', '--config.train_steps=2']  # fmt: skip
    commands = {
        'train': ['train', *folder, run],
        'resume': ['train', *folder, '--config.train_steps=3', '--allow-config-change', run],
        'evaluate': ['evaluate', run, '--protocols=knn', '--config.knn.k=2'],
        'embed': ['embed', run, '--out=gs://runs/plain.parquet', f'--dataset={photos}'],
    }
    return run_all('no_tensorflow.py', commands, environment)


def assert_ended(result):
    assert result['code'] == 0, result['err']
    assert 'Traceback' not in result['err']


def test_a_killed_run_resumes_and_ends_as_an_undisturbed_local_one(life, storage):
    assert_ended(life['resume'])
    assert 'Resuming at step' in life['resume']['out']
    assert 'knn_top1_k2' in life['resume']['out']
    found = storage.objects['runs']['killed/checkpoints/12/meta/metadata']
    assert found == (life['undisturbed'] / 'checkpoints' / '12' / 'meta' / 'metadata').read_bytes()
    assert 'killed/train.lock' not in storage.objects['runs']


def test_each_step_has_its_row_and_its_event(life, storage, tmp_path):
    objects = storage.objects['runs']
    rows = [json.loads(line) for line in objects['killed/metrics.jsonl'].splitlines()]
    assert [row['step'] for row in rows if 'loss' in row] == list(range(1, 13))
    (tmp_path / 'events').mkdir()
    for name, content in objects.items():
        if name.startswith('killed/tensorboard/events'):
            (tmp_path / 'events' / name.rpartition('/')[2]).write_bytes(content)
    events = event_accumulator.EventAccumulator(str(tmp_path / 'events'), {'tensors': 0})
    events.Reload()
    assert {event.step for event in events.Tensors('contrast_loss')} == set(range(1, 13))


def test_the_run_is_evaluated_and_compared(life, storage):
    for name in ('evaluate', 'arrays', 'compare'):
        assert_ended(life[name])
    result = json.loads(storage.objects['runs']['killed/result.json'])
    assert {score['dataset'] for score in result['scores']} == {'digits', 'gs://data/arrays_{split}.npz'}
    assert storage.objects['runs']['killed/report/summary.png'].startswith(b'\x89PNG')
    assert 'gs://runs/folder (step 2)' in life['compare']['out']


def test_features_are_read_again(life, storage, environment):
    command = ['evaluate', '--workdir=gs://runs/killed', '--protocols=linear', '--labels=10']
    before = dict(storage.generations)
    assert_ended(run_all('commands.py', {'linear': command}, environment)['linear'])
    written = {name for name, generation in storage.generations.items() if before.get(name) != generation}
    assert not [name for _, name in written if '/features/' in name]


def test_a_folder_is_trained_on_from_another_run_and_fine_tuned(life, storage):
    assert_ended(life['init_from'])
    assert 'Initialised from step 12 of gs://runs/killed.' in life['init_from']['out']
    assert 'Skipped, not a readable image: gs://data/photos/train/a/99.png' in life['init_from']['out']
    assert_ended(life['finetune'])
    assert any(name.startswith('folder/trained/finetune') for name in storage.objects['runs'])


def test_images_are_embedded_and_their_neighbours_drawn(life, storage):
    assert_ended(life['embed'])
    with np.load(io.BytesIO(storage.objects['runs']['own/photos.npz'])) as found:
        assert found['features'].shape[0] == 24
        assert str(found['ids'][0]).endswith('a/00.png')
    assert storage.objects['runs']['own/photos.png'].startswith(b'\x89PNG')


def test_images_are_packed_and_trained_on(life, storage):
    for name in ('pack', 'packed', 'embed packed'):
        assert_ended(life[name])
    assert 'were left out:\n  gs://data/photos/train/a/99.png\n' in life['pack']['out']
    assert 'Data: gs://runs/packed/train, 24 images, 2 classes' in life['packed']['out']
    assert 'feed: decoded' in life['packed']['out']
    with np.load(io.BytesIO(storage.objects['runs']['own/packed.npz'])) as found:
        assert str(found['ids'][0]) == 'gs://data/photos/train/a/00.png'


def test_a_data_set_of_tfds_is_trained_on(life):
    if 'tfds' not in life:
        pytest.skip(f'Fashion-MNIST is not prepared at {TFDS}')
    assert_ended(life['tfds'])
    assert 'fashion_mnist/train' in life['tfds']['out']


@pytest.mark.parametrize(
    'name, message',
    [('missing', "'folder:gs://data/none': there is no such directory"), ('no bucket', 'gs://none does not exist')],
)
def test_what_is_missing_is_told(life, name, message):
    assert life[name]['code'] == 2
    assert message in life[name]['err']
    assert 'Traceback' not in life[name]['err']


def test_all_of_it_without_tensorflow(plain_life, storage):
    for result in plain_life.values():
        assert_ended(result)
    assert 'Resuming at step 2' in plain_life['resume']['out']
    rows = [json.loads(line) for line in storage.objects['runs']['plain/metrics.jsonl'].splitlines()]
    assert [row['step'] for row in rows if 'loss' in row] == [1, 2, 3]
    assert json.loads(storage.objects['runs']['plain/result.json'])['step'] == 3
    assert storage.objects['runs']['plain.parquet'].startswith(b'PAR1')


def test_nothing_is_left_behind_here_or_there(life, plain_life, storage):
    assert not (REPOSITORY / 'gs:').exists()
    assert not [name for name in storage.objects['runs'] if name.endswith(('.partial', '.lock'))]
