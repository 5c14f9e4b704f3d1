"""`simclr evaluate --protocols=segmentation` on drawn shapes: its scores, what it keeps, what it refuses."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from simclr_jax import sharding
from simclr_jax.build import make_model
from simclr_jax.cli.main import main
from simclr_jax.evaluation import run as run_module
from simclr_jax.evaluation.protocols import segmentation as protocol
from simclr_jax.models.segmenter import Segmenter
from simclr_jax.training import workdir
from support.drawings import NAMES, draw_folders
from support.encoders import make_workdir
from support.runs import assert_same_bits, mesh_of, model_of

# Test images divide neither by the batch nor by the devices.
IMAGES, SHAPE, SIDE = {'train': 20, 'test': 13}, (18, 24), 24
CHANNELS, STRIDE = 8, 2
SETTINGS = {
    'channels': CHANNELS,
    'output_stride': STRIDE,
    'image_size': SIDE,
    'batch_size': 8,
    'steps': 2,
    'after_block': 4,
}


def evaluate(directory, folders, *arguments, **changed):
    paths = {'images': f'{folders}/images/{{split}}', 'masks': f'{folders}/masks/{{split}}'}
    fields = SETTINGS | paths | changed
    return main([
        'evaluate', f'--workdir={directory}', '--protocols=segmentation', '--config.bootstrap_draws=100',
        *(f'--config.segmentation.{field}={value}' for field, value in fields.items()), *arguments,
    ])  # fmt: skip


def scores_of(directory):
    scores = json.loads((directory / 'result.json').read_text())['scores']
    return {(score['encoder'], score['detail']): score for score in scores if score['protocol'] == 'segmentation'}


@pytest.fixture(scope='module', autouse=True)
def two_devices():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, 'make_mesh', mesh_of(2))
        yield


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Drawings in two sizes. One in seven pixels of the masks is ignored."""
    path = draw_folders(tmp_path_factory.mktemp('drawn'), IMAGES, SHAPE)
    draw_folders(path, {'test': 4}, SHAPE[::-1], seed=1)
    generator = np.random.default_rng(0)
    for mask in sorted((path / 'masks').rglob('*.png')):
        classes = np.asarray(Image.open(mask))
        Image.fromarray(np.where(generator.random(classes.shape) < 1 / 7, 255, classes).astype(np.uint8)).save(mask)
    return path


@pytest.fixture(scope='module')
def measured(folders, tmp_path_factory):
    """A work directory after the protocol, with the untrained encoder. The images of the pretraining stay closed."""
    directory = make_workdir(tmp_path_factory.mktemp('segmentation') / 'run')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, 'open_dataset', lambda *_: pytest.fail('opened'))
        patch.setattr(run_module, 'open_images', lambda *_: pytest.fail('opened'))
        names = f'--config.segmentation.names={",".join(NAMES)}'
        assert evaluate(directory, folders, names, '--baselines=untrained') == 0
    return directory, names


def trained_of(directory, encoder='simclr'):
    (found,) = (directory / 'trained').glob(f'segmentation-{encoder}_*')
    return found


def test_both_encoders_have_a_score_with_its_interval(measured):
    scores = scores_of(measured[0])
    assert scores.keys() == {('untrained', 'frozen'), ('simclr', 'frozen')}
    for score in scores.values():
        assert (score['metric'], score['labels']) == ('miou', 'all')
        assert 0 <= score['low'] <= score['value'] <= score['high'] <= 1


def enlarged(logits, size):
    """Bilinear weights of each axis, as matrices."""

    def weights(length):
        places = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        return np.maximum(1 - np.abs(places[:, None] - np.arange(length)), 0)

    return np.einsum('yh,xw,hwk->yxk', weights(logits.shape[0]), weights(logits.shape[1]), logits)


def test_the_score_is_a_count_of_pixels_one_image_at_a_time(measured, folders):
    """From the files, the kept parameters and NumPy. Each test image fills the view, with grey below or beside it."""
    directory, _ = measured
    encoder = make_model(workdir.read_config(str(directory)), 0).encoder.clone(output_stride=STRIDE)
    model, (variables, _) = Segmenter(encoder, len(NAMES), CHANNELS), model_of(trained_of(directory))
    logits_of = jax.jit(lambda image: model.apply(variables, image[None], train=False)[0])
    both, either = np.zeros(len(NAMES)), np.zeros(len(NAMES))
    for file in sorted((folders / 'images' / 'test').iterdir()):
        view, truth = np.full((SIDE, SIDE, 3), 128), np.asarray(Image.open(folders / 'masks' / 'test' / file.name))
        height, width = truth.shape
        view[:height, :width] = np.asarray(Image.open(file))
        logits = np.asarray(logits_of(jnp.asarray(view, jnp.float32) / 255), np.float64)
        predicted = enlarged(logits, SIDE).argmax(axis=-1)[:height, :width]
        for label in range(len(NAMES)):
            pixels = (truth != 255) & (predicted == label), truth == label
            both[label] += (pixels[0] & pixels[1]).sum()
            either[label] += (pixels[0] | pixels[1]).sum()
    expected = (both[either > 0] / either[either > 0]).mean()
    # Where two logits are equal but for rounding, a pixel may have the other class: there are 5,616.
    assert scores_of(directory)['simclr', 'frozen']['value'] == pytest.approx(expected, abs=1e-3)


def test_table_pictures_and_settings_are_kept(measured):
    directory, _ = measured
    assert ', segmentation frozen, all labels |' in (directory / 'results.md').read_text()
    for name in ('summary.png', 'segmentation.png'):
        assert (directory / 'report' / name).stat().st_size > 10_000
    settings = json.loads((trained_of(directory) / 'settings.json').read_text())
    assert settings['settings']['after_block'] == 4
    assert 'test_size' not in settings['settings']


def test_the_same_command_resumes_and_any_number_of_devices_gives_the_same_scores(
    measured, folders, capsys, monkeypatch
):
    directory, names = measured
    before = scores_of(directory)
    monkeypatch.setattr(sharding, 'make_mesh', mesh_of(8))
    assert evaluate(directory, folders, names, '--baselines=untrained') == 0
    output = capsys.readouterr().out
    assert output.count('Step 2 of 2 is reached already.') == 2
    assert output.count('  IoU of background: ') == 2
    after = scores_of(directory)
    for row, score in before.items():
        # Pixels whose logits are equal but for rounding, as above.
        assert after[row]['value'] == pytest.approx(score['value'], abs=1e-3)


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_bits_of_an_undisturbed_one(measured, folders, tmp_path, monkeypatch):
    directory = tmp_path / 'run'
    shutil.copytree(measured[0], directory, ignore=shutil.ignore_patterns('trained'))
    batches = protocol.train_batches

    def breaks_off(*arguments, start_step, **settings):
        yield next(batches(*arguments, start_step=start_step, **settings))
        raise KeyboardInterrupt

    monkeypatch.setattr(protocol, 'train_batches', breaks_off)
    assert evaluate(directory, folders, measured[1]) != 0
    assert model_of(trained_of(directory))[1] == 1
    monkeypatch.setattr(protocol, 'train_batches', batches)
    assert evaluate(directory, folders, measured[1]) == 0
    found, expected = (model_of(trained_of(path))[0] for path in (directory, measured[0]))
    assert_same_bits(found, expected)


@pytest.mark.slow
def test_fine_tuning_and_other_protocols_stand_beside_it(measured, folders):
    directory, names = measured
    assert evaluate(directory, folders, names, '--protocols=measures,segmentation', after_block=-1, test_size=30) == 0
    assert ('simclr', 'fine-tuned') in scores_of(directory)
    scores = json.loads((directory / 'result.json').read_text())['scores']
    assert {score['protocol'] for score in scores} == {'measures', 'segmentation'}


@pytest.mark.parametrize(
    'changed, message',
    [
        (
            {'images': '', 'masks': ''},
            "segmentation.images='', segmentation.masks='', segmentation.tfds='': set images",
        ),
        ({'masks': ''}, 'set images and masks, for example --config.segmentation.images=DIR/images/{split}'),
        ({'tfds': 'oxford_iiit_pet'}, 'or only tfds'),
        ({'images': '/nowhere/{split}'}, 'segmentation.images=/nowhere/train: there is no such directory'),
        ({'images': '/nowhere'}, 'both splits would have the same images; write {split}'),
        ({'test_split': 'train'}, "segmentation.train_split='train': must differ from segmentation.test_split"),
        ({'names': 'a,b', 'classes': 3}, 'segmentation.classes=3: segmentation.names has 2'),
        ({'classes': 2}, 'hold the number 3, but there are only 2 classes from 0 up'),
        ({'output_stride': 3}, 'segmentation.output_stride=3: must be one of 1, 2, 4, 8, 16, 32'),
    ],
)
def test_mistakes(measured, folders, capsys, changed, message):
    assert evaluate(measured[0], folders, **changed) == 2
    assert message in capsys.readouterr().err
