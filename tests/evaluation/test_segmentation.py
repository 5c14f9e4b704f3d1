"""`simclr evaluate --protocols=segmentation` on drawn shapes: its scores, what it keeps, what it refuses."""

import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from simclr_jax import sharding
from simclr_jax.cli.main import main
from simclr_jax.config import base_evaluation, load_evaluation
from simclr_jax.config.label_budget import Labels
from simclr_jax.data.spec import DataError
from simclr_jax.evaluation import masked_datasets, run
from simclr_jax.evaluation.protocols import PROTOCOLS
from simclr_jax.evaluation.protocols import segmentation as protocol
from simclr_jax.metrics.segmentation import IGNORED
from simclr_jax.models.segmenter import Segmenter
from simclr_jax.networks import make_model
from simclr_jax.report import segmentation
from simclr_jax.training import workdir
from support.drawings import NAMES, draw_folders
from support.encoders import make_workdir
from support.paths import REPOSITORY
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
    'after_block': 2,
}


def fields_of(folders, protocols='segmentation', **changed):
    """Fields of the configuration with their texts."""
    paths = {'images': f'{folders}/images/{{split}}', 'masks': f'{folders}/masks/{{split}}'}
    fields = SETTINGS | paths | {'names': ','.join(NAMES)} | changed
    chosen = {f'segmentation.{name}': str(value) for name, value in fields.items()}
    return {'protocols': protocols, 'bootstrap_draws': '100'} | chosen


def by_command(directory, folders, *arguments, **changed):
    """Exit code of `simclr evaluate`."""
    options = [f'--config.{name}={text}' for name, text in fields_of(folders, **changed).items()]
    return main(['evaluate', f'--workdir={directory}', *options, *arguments])


def scores_of(directory):
    scores = json.loads((directory / 'result.json').read_text())['scores']
    return {(score['encoder'], score['detail']): score for score in scores if score['protocol'] == 'segmentation'}


@pytest.fixture(scope='module', autouse=True)
def one_device():
    """A program for one is compiled sooner than one for eight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, 'make_mesh', mesh_of(1))
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
    """A work directory after the protocol, and what is shown. The images of the pretraining stay closed."""
    directory, shown = make_workdir(tmp_path_factory.mktemp('segmentation') / 'run'), []
    config = load_evaluation('', [*fields_of(folders).items(), ('baselines', 'untrained')])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, 'open_dataset', lambda *_: pytest.fail('opened'))
        patch.setattr(run, 'open_images', lambda *_: pytest.fail('opened'))
        run.evaluate(config, str(directory), show=shown.append)
    return directory, shown


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


def test_settings_are_kept(measured):
    settings = json.loads((trained_of(measured[0]) / 'settings.json').read_text())['settings']
    assert settings['after_block'] == 2
    assert 'test_size' not in settings


def test_the_picture_shows_what_is_counted(measured, tmp_path):
    pytest.importorskip('matplotlib')
    _, shown = measured
    assert [predictions.encoder for predictions in shown] == ['untrained', 'simclr']
    for predictions in shown:
        assert predictions.miou == scores_of(measured[0])[predictions.encoder, 'frozen']['value']
        for image, truth, predicted in zip(predictions.images, predictions.truths, predictions.predicted, strict=True):
            assert image.shape[:2] == truth.shape == predicted.shape
    path = segmentation.draw(str(tmp_path), shown)
    pixels = np.asarray(Image.open(path).convert('RGB')).reshape(-1, 3)
    seen = np.unique(np.concatenate([np.unique(truth) for truth in shown[0].truths]))
    for color in segmentation.palette(len(NAMES))[seen[seen != IGNORED]]:
        assert (np.abs(pixels - color.astype(int)).max(axis=1) < 2).sum() > 50


def test_colours_of_classes_differ():
    colors = segmentation.palette(150).astype(int)
    assert len(np.unique(colors, axis=0)) == 150
    assert segmentation.colored(np.array([[0, 255]], np.uint8), 2).tolist() == [[[64, 64, 64], [255, 255, 255]]]


def test_it_resumes_and_any_number_of_devices_gives_the_same_score(measured, folders, capsys, monkeypatch):
    directory, _ = measured
    before = scores_of(directory)['simclr', 'frozen']
    monkeypatch.setattr(sharding, 'make_mesh', mesh_of(8))
    run.evaluate(load_evaluation('', fields_of(folders).items()), str(directory))
    output = capsys.readouterr().out
    assert 'Step 2 of 2 is reached already.' in output
    assert '  IoU of background: ' in output
    # Pixels whose logits are equal but for rounding, as above.
    assert scores_of(directory)['simclr', 'frozen']['value'] == pytest.approx(before['value'], abs=1e-3)


@pytest.fixture
def without_training(measured, folders, tmp_path, monkeypatch):
    """Evaluates copies of the drawings. Gives images, steps and directory of each training, which is left out."""
    directory = tmp_path / 'run'
    shutil.copytree(measured[0], directory, ignore=shutil.ignore_patterns('trained'))
    shutil.copytree(folders, tmp_path / 'drawn')

    def evaluate(**fields):
        seen = []

        def train(name, measurement, settings, programs, place, **_):
            steps = protocol.trainings._total_steps(settings, programs.learnt.size, programs.batch_size)
            seen.append((programs.learnt.size, steps, place))
            return {}

        monkeypatch.setattr(protocol.trainings, 'train', train)
        monkeypatch.setattr(
            protocol, '_predict', lambda on, _: np.zeros((on.dataset.test.images.size, SIDE, SIDE), np.uint8)
        )
        run.evaluate(load_evaluation('', (fields_of(tmp_path / 'drawn') | fields).items()), str(directory))
        return seen

    return evaluate


def test_a_share_of_the_images_has_its_own_training_and_row(without_training, tmp_path):
    (share, _, first), (everything, _, second) = without_training(labels='25%,all')
    assert (share, everything, len({first, second})) == (5, 20, 2)
    scores = json.loads((tmp_path / 'run' / 'result.json').read_text())['scores']
    assert {'25%', 'all'} <= {score['labels'] for score in scores if score['protocol'] == 'segmentation'}


def test_a_number_per_class_is_left_out_beside_other_protocols():
    said, asked = [], [Labels(per_class=2), Labels(fraction=0.25)]
    (own,) = (known for known in PROTOCOLS if known.name == 'segmentation')
    assert run._budgets(own, types.SimpleNamespace(name='simclr'), None, asked, said.append) == asked[1:]
    assert said == ['segmentation: takes shares of the images, no number per class; 2 left out.']


def test_epochs_go_before_the_steps_of_the_recipe(without_training):
    counts = [{'segmentation.steps': '20000'}, {'segmentation.steps': '20000', 'segmentation.epochs': '3'}]
    ((_, steps, first),), ((_, of_epochs, second),) = (without_training(**fields) for fields in counts)
    # 20 images in batches of 8.
    assert (steps, of_epochs, first != second) == (20_000, 8, True)


def test_changed_masks_to_learn_from_have_another_training(without_training, tmp_path):
    def places(split):
        for mask in sorted((tmp_path / 'drawn' / 'masks' / split).iterdir())[:1]:
            Image.fromarray(np.full_like(np.asarray(Image.open(mask)), 5)).save(mask)
        return [place for *_, place in without_training(**{'segmentation.names': '', 'segmentation.classes': '6'})]

    ((*_, first),) = without_training(**{'segmentation.names': '', 'segmentation.classes': '6'})
    assert places('test') == [first]
    assert places('train') != [first]


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_bits_of_an_undisturbed_one(measured, folders, tmp_path, monkeypatch):
    directory = tmp_path / 'run'
    shutil.copytree(measured[0], directory, ignore=shutil.ignore_patterns('trained'))
    batches = protocol.train_batches

    def breaks_off(*arguments, start_step, **settings):
        yield next(batches(*arguments, start_step=start_step, **settings))
        raise DataError('taken away')

    monkeypatch.setattr(protocol, 'train_batches', breaks_off)
    assert by_command(directory, folders) == 2
    assert model_of(trained_of(directory))[1] == 1
    monkeypatch.setattr(protocol, 'train_batches', batches)
    assert by_command(directory, folders) == 0
    found, expected = (model_of(trained_of(path))[0] for path in (directory, measured[0]))
    assert_same_bits(found, expected)


@pytest.mark.slow
def test_the_command_writes_table_and_pictures_beside_other_protocols(measured, folders, capsys):
    directory, _ = measured
    assert by_command(directory, folders, protocols='measures,segmentation', after_block=-1, test_size=30) == 0
    assert ('simclr', 'fine-tuned') in scores_of(directory)
    scores = json.loads((directory / 'result.json').read_text())['scores']
    assert {score['protocol'] for score in scores} == {'measures', 'segmentation'}
    assert ', segmentation fine-tuned, all labels' in (directory / 'results.md').read_text()
    for name in ('summary.png', 'segmentation.png'):
        assert (directory / 'report' / name).stat().st_size > 10_000
    capsys.readouterr()
    assert main(['evaluate', '--compare', str(directory), str(directory)]) == 0
    assert ', segmentation frozen, all labels' in capsys.readouterr().out


@pytest.mark.parametrize(
    'fields, name',
    [
        ({'images': '/d/images/{split}', 'masks': '/d/masks/{split}'}, '/d/images/test (4 classes)'),
        ({'images': '/d//images/{split}/', 'masks': '/d/masks/{split}'}, '/d/images/test (4 classes)'),
        ({'images': '/d/{split}/images', 'masks': '/d/{split}/masks'}, '/d/test/images (4 classes)'),
        ({'images': 'gs://d/jpg/{split}/', 'masks': 'gs://d/masks/{split}'}, 'gs://d/jpg/test (4 classes)'),
        ({'images': '/d/images/{split}', 'masks': '/d/old/{split}'}, '/d/images/test (old/test, 4 classes)'),
        ({'images': 'images/{split}', 'masks': '/d/masks/{split}'}, 'images/test (/d/masks/test, 4 classes)'),
        (
            {'images': '/d/jpg', 'masks': '/d/aug', 'lists': '/d/sets/{split}.txt', 'train_split': 'trainaug'},
            '/d/jpg (from trainaug, aug, sets/test.txt, 4 classes)',
        ),
        ({'tfds': 'pets', 'first_class': 1, 'ignore': 3}, 'pets/test (4 classes from 1, 3 ignored)'),
    ],
)
def test_names_in_the_results_tell_measurements_apart(fields, name):
    settings = base_evaluation().segmentation
    settings.update(fields)
    assert masked_datasets.name_of(settings, 4) == name


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
        ({'names': 'a,b'}, 'hold the number 3, but there are only 2 classes from 0 up'),
        ({'first_class': 4}, 'hold 0 classes besides the ignored pixels'),
        ({'output_stride': 3}, 'segmentation.output_stride=3: must be one of 1, 2, 4, 8, 16, 32'),
    ],
)
def test_mistakes(measured, folders, capsys, changed, message):
    assert by_command(measured[0], folders, **changed) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_pretrained_encoder_beats_an_untrained_one_on_drawn_shapes(tmp_path):
    """SimCLR sees drawings of single shapes. The frozen encoder's head learns from 24 drawings of several shapes."""
    draw_folders(tmp_path / 'single', {'train': 512}, (16, 16), seed=5, most=1, radii=(0.35, 0.5))
    draw_folders(tmp_path / 'several', {'train': 24, 'test': 150}, (48, 64), radii=(0.2, 0.35))
    fields = {
        'data.source': 'folder',
        'data.path': tmp_path / 'single' / 'images',
        'data.split': 'train',
        'data.eval_split': '',
        'data.image_size': 16,
        'augment.views': ','.join(['crop flip rotate jitter noise'] * 2),
        'augment.crop.area': '0.4,1',
        'model.depth': 6,
        'model.width': 0.5,
        'train_steps': 400,
    }
    options = [f'--config.{name}={value}' for name, value in fields.items()]
    workdir = tmp_path / 'run'
    assert main(['train', f'--config={REPOSITORY}/configs/digits.py', f'--workdir={workdir}', *options]) == 0
    settings = {'image_size': 48, 'output_stride': 8, 'channels': 16, 'steps': 200, 'learning_rate': 0.02}
    assert by_command(workdir, tmp_path / 'several', '--baselines=untrained', **settings) == 0
    scores = scores_of(workdir)
    pretrained, untrained = (scores[encoder, 'frozen'] for encoder in ('simclr', 'untrained'))
    half_width = max((score['high'] - score['low']) / 2 for score in (pretrained, untrained))
    assert pretrained['value'] - untrained['value'] > half_width
