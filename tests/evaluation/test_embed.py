"""`simclr embed`: the features of images as files, their nearest neighbours as a picture, and every mistake told."""

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from pyarrow import parquet

from simclr_jax import sharding
from simclr_jax.build import make_task
from simclr_jax.cli.main import main
from simclr_jax.config import load_config
from simclr_jax.data.arrays import load_digits
from simclr_jax.data.spec import Decoded, Examples
from simclr_jax.evaluation import embed as embedding
from simclr_jax.evaluation.features import Features, extract
from simclr_jax.report import neighbours
from simclr_jax.training import workdir
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.state import TrainState
from support.paths import SHARED
from support.runs import DIGITS_HERE, model_of

TEST = load_digits('test')
# Neither 360 images nor the folder's 13 divide by this or by eight devices.
BATCH = 56


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A work directory with a checkpoint of the digits' encoder; its values are random, the moving statistics' too."""
    directory = tmp_path_factory.mktemp('runs') / 'digits'
    overrides = [tuple(option.removeprefix('--config.').split('=', 1)) for option in DIGITS_HERE[1:]]
    config = load_config(DIGITS_HERE[0].removeprefix('--config='), [*overrides, ('model.depth', '10')])
    workdir.claim(str(directory), config, allow_change=False)
    mesh = sharding.make_mesh(jax.devices()[:1])
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        name, fan_in = path[-1].key, np.prod(leaf.shape[:-1])
        if name in ('scale', 'var'):
            return generator.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        deviation = np.sqrt(2 / fan_in) if name == 'kernel' else 0.1
        return generator.normal(0, deviation, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(make_task(config, 10, mesh).init, jax.random.key(0))
    state = TrainState(np.int32(7), **jax.tree.map_with_path(draw, shapes), opt_state={})
    checkpoints = Checkpoints(str(directory))
    checkpoints.save(jax.device_put(state, sharding.replicated(mesh)))
    checkpoints.close()
    return directory


@pytest.fixture(scope='module')
def embed(run):
    """embed(out, ...) -> the exit code."""

    def call(out, *options):
        return main(['embed', f'--workdir={run}', f'--batch-size={BATCH}', f'--out={out}', *options])

    return call


@pytest.fixture(scope='module')
def digits(embed, tmp_path_factory):
    """The .npz of the pretraining's test split."""
    path = tmp_path_factory.mktemp('features') / 'digits.npz'
    assert embed(path) == 0
    return path


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A folder of thirteen digits as files, and two that are no images."""
    folder = tmp_path_factory.mktemp('photos')
    for number, image in enumerate(TEST.content.images[:13]):
        Image.fromarray(image).save(folder / f'{number:02}.png')
    (folder / '05b.jpg').write_text('no image')
    (folder / 'cut.png').write_bytes((folder / '00.png').read_bytes()[:40])
    return folder


def read(path):
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def assert_same_features(found, expected):
    """In batches of another shape float32 sums come in another order: a few roundings, of values of about one."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_features_are_those_of_the_encoder(digits, run):
    found = read(digits)
    variables, _ = model_of(run)
    task = make_task(workdir.read_config(str(run)), 0, sharding.make_mesh(jax.devices()[:1]))
    expected = jax.jit(task.encode)(variables, TEST.content.images / np.float32(255))
    assert found['features'].dtype == np.float32
    assert_same_features(found['features'], np.asarray(expected))


def test_every_image_has_its_label_and_id(digits):
    found = read(digits)
    np.testing.assert_array_equal(found['labels'], TEST.labels)
    assert found['labels'].dtype == np.int32
    assert found['ids'].tolist() == [f'digits/test/{number}' for number in range(360)]


def test_parquet_holds_the_same(digits, embed, tmp_path, capsys):
    assert embed(tmp_path / 'digits.parquet') == 0
    table, expected = parquet.read_table(tmp_path / 'digits.parquet'), read(digits)
    assert table.column_names == ['id', 'label', 'class_name', 'features']
    assert str(table.schema.field('features').type) == f'fixed_size_list<element: float>[{64}]'
    np.testing.assert_array_equal(np.array(table['features'].to_pylist(), np.float32), expected['features'])
    assert table['id'].to_pylist() == expected['ids'].tolist()
    assert table['label'].to_pylist() == expected['labels'].tolist()
    assert table['class_name'].to_pylist() == [str(label) for label in expected['labels']]
    assert '360 features of 64 values' in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ['digits.parquet']


def test_several_classes_an_image_are_lists_in_parquet(tmp_path):
    labels = np.array([[1, 0, 1], [0, -1, 0]], np.int32)
    examples = Examples('objects', 2, Decoded(np.zeros((2, 8, 8, 3), np.uint8)), labels, ('cat', 'dog', 'cow'))
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = epath.Path(tmp_path) / 'objects.parquet'
    embedding.write(path, Features(values, labels, np.arange(2)), examples)
    assert parquet.read_table(path).to_pylist() == [
        {'id': 'objects/0', 'label': [1, 0, 1], 'class_name': ['cat', 'cow'], 'features': [0.0, 1.0, 2.0]},
        {'id': 'objects/1', 'label': [0, -1, 0], 'class_name': [], 'features': [3.0, 4.0, 5.0]},
    ]


def test_another_split_and_layer(embed, tmp_path):
    """Of images of 8 pixels the last stage's map is one pixel: pooled or averaged, it is h."""
    assert embed(tmp_path / 'h.npz', '--split=train') == 0
    assert embed(tmp_path / 'map.npz', '--split=train', '--layer=feature5') == 0
    assert embed(tmp_path / 'stem.npz', '--layer=feature1') == 0
    h, last, stem = (read(tmp_path / f'{name}.npz') for name in ('h', 'map', 'stem'))
    assert h['features'].shape == (1437, 64)
    assert_same_features(last['features'], h['features'])
    assert stem['features'].shape == (360, 8 * 8 * 8)


class TestOwnImages:
    def test_a_folder_without_labels(self, embed, digits, photos, tmp_path, capsys):
        """What is no image is named and left out, what is has the features that it has elsewhere."""
        assert embed(tmp_path / 'photos.npz', f'--dataset={photos}') == 0
        found = read(tmp_path / 'photos.npz')
        assert_same_features(found['features'], read(digits)['features'][:13])
        assert found['ids'].tolist() == [str(photos / f'{number:02}.png') for number in range(13)]
        np.testing.assert_array_equal(found['labels'], -1)
        output = capsys.readouterr().out
        assert (
            f'2 files could not be read as images and were left out:\n  {photos}/05b.jpg\n  {photos}/cut.png\n'
            in output
        )

    def test_sub_folders_are_classes(self, embed, photos, tmp_path):
        for number, name in ((0, 'zero'), (1, 'one'), (2, 'two')):
            (tmp_path / 'images' / name).mkdir(parents=True)
            (tmp_path / 'images' / name / 'a.png').write_bytes((photos / f'{number:02}.png').read_bytes())
        assert embed(tmp_path / 'images.parquet', f'--dataset=folder:{tmp_path}/images') == 0
        table = parquet.read_table(tmp_path / 'images.parquet')
        assert table['class_name'].to_pylist() == ['one', 'two', 'zero']
        assert table['label'].to_pylist() == [0, 1, 2]

    def test_sub_folders_called_test_are_the_split(self, photos, run, tmp_path):
        home = workdir.read_config(str(run)).data
        for split, numbers in (('train', range(3)), ('val', range(3, 5))):
            (tmp_path / split).mkdir()
            for number in numbers:
                (tmp_path / split / f'{number}.png').write_bytes((photos / f'{number:02}.png').read_bytes())
        assert embedding.open_split(home, str(tmp_path), '').size == 2
        assert embedding.open_split(home, f'folder:{tmp_path}', 'train').size == 3

    @pytest.mark.parametrize('name, split', [('own.npz', ''), ('own_{split}.npz', ''), ('own_{split}.npz', 'train')])
    def test_arrays(self, run, tmp_path, name, split):
        home = workdir.read_config(str(run)).data
        for file in ('own.npz', 'own_train.npz', 'own_validation.npz'):
            np.savez(tmp_path / file, image=TEST.content.images[: len(file)])
        examples = embedding.open_split(home, f'{tmp_path}/{name}', split)
        used = name.replace('{split}', split or 'validation')
        assert (examples.size, examples.name) == (len(used), f'{tmp_path}/{used}')
        np.testing.assert_array_equal(examples.labels, -1)

    def test_a_data_set_of_tfds(self, run):
        prepared = SHARED / 'data' / 'tfds'
        if not (prepared / 'fashion_mnist').exists():
            pytest.skip(f'the data set is not prepared at {prepared}')
        home = workdir.read_config(str(run)).data
        home.update(source='tfds', path=str(prepared))
        assert embedding.open_split(home, 'fashion_mnist', 'train[:20]').size == 20
        assert embedding.open_split(home, 'fashion_mnist', '').name == 'fashion_mnist/test'


class TestNeighbours:
    def test_an_image_is_nearest_to_itself(self, embed, photos, tmp_path, monkeypatch):
        """By its id, and as a file: the first neighbour is the image, at cosine similarity one."""
        cells = []
        draw_cell = neighbours._draw_cell

        def watch(axes, image, caption, color):
            cells.append((image, caption))
            draw_cell(axes, image, caption, color)

        monkeypatch.setattr(neighbours, '_draw_cell', watch)
        names = f'--neighbours=digits/test/17,{photos}/04.png'
        assert embed(tmp_path / 'x.npz', names, '--k=3', f'--picture={tmp_path}/near.png') == 0
        for row, number in ((cells[:4], 17), (cells[4:], 4)):
            (query, _), (nearest, caption), *others = row
            np.testing.assert_array_equal(query, TEST.content.images[number])
            np.testing.assert_array_equal(nearest, query)
            assert caption == f'{TEST.labels[number]}\n1.000'
            assert len(others) == 2
        with Image.open(tmp_path / 'near.png') as picture:
            assert picture.width > picture.height > 200

    def test_a_small_folder_shows_all_that_there_is(self, embed, photos, tmp_path):
        """The picture lies beside the features unless it is told where."""
        name = tmp_path / 'costs $5 and $6.png'
        name.write_bytes((photos / '00.png').read_bytes())
        assert embed(tmp_path / 'x.npz', f'--dataset={photos}', f'--neighbours={name}', '--k=99') == 0
        with Image.open(tmp_path / 'x.png') as picture:
            assert picture.width > 13 * 100


class TestMistakes:
    @pytest.fixture
    def mistake(self, embed, tmp_path, capsys):
        """mistake(...) -> the message; the exit code is 2 and nothing is written."""

        def call(*options, out='x.npz'):
            before = sorted(tmp_path.rglob('*'))
            assert embed(tmp_path / out, *options) == 2
            assert sorted(tmp_path.rglob('*')) == before
            return capsys.readouterr().err

        return call

    def test_options_are_all_told_at_once(self, mistake):
        message = mistake('--layer=h5', '--k=0', '--batch-size=-8', '--picture=y.png', out='x.csv')
        assert '--layer=h5: unknown; choose from h, feature1' in message
        assert '--k=0: must be 1 or more' in message
        assert '--batch-size=-8: must be 0 or more' in message
        assert '--picture=y.png: only neighbours are drawn; add --neighbours=' in message
        assert 'x.csv: must end in .npz or .parquet' in message

    def test_no_directory_to_write_to(self, mistake):
        assert 'there is no directory' in mistake(out='missing/x.npz')

    def test_what_is_there_is_not_replaced_unasked(self, mistake, embed, tmp_path):
        (tmp_path / 'x.npz').write_text('of great value')
        assert 'x.npz: the file exists; choose another, or replace it with --overwrite' in mistake()
        assert (tmp_path / 'x.npz').read_text() == 'of great value'
        assert embed(tmp_path / 'x.npz', '--overwrite') == 0
        assert len(read(tmp_path / 'x.npz')['ids']) == 360

    @pytest.mark.parametrize(
        'options, words',
        [
            (['--split=dev'], "data.split='dev': the source digits has train and test"),
            (['--dataset=nonsense'], "data set 'nonsense'"),
            (['--dataset=nonsense', '--split=train'], 'TensorFlow Datasets cannot load it'),
            (['--dataset=/nowhere/at/all'], 'data.path=/nowhere/at/all: there is no such directory'),
            (['--dataset=nothing_{split}.npz'], 'there is no file nothing_test.npz'),
            (['--neighbours=cat.jpg'], 'neighbours of cat.jpg: there is no such file, and no such image in digits'),
        ],
    )
    def test_no_such_data(self, mistake, options, words):
        assert words in mistake(*options)

    def test_folders_without_images(self, mistake, photos, tmp_path):
        (tmp_path / 'empty').mkdir()
        assert 'holds no image files' in mistake(f'--dataset={tmp_path}/empty')
        (tmp_path / 'empty' / 'a.jpg').write_text('no image')
        assert f'none of 1 files of {tmp_path}/empty is a readable image' in mistake(f'--dataset={tmp_path}/empty')
        assert 'cut.png: cannot be read as an image' in mistake(f'--neighbours={photos}/cut.png')
        assert 'cut.png: cannot be read as an image' in mistake(f'--dataset={photos}', f'--neighbours={photos}/cut.png')

    def test_no_run_and_no_checkpoint(self, run, tmp_path, capsys):
        for words in ('holds no config.json', 'there is no checkpoint in'):
            assert main(['embed', f'--workdir={tmp_path}', f'--out={tmp_path}/x.npz']) == 2
            assert words in capsys.readouterr().err
            (tmp_path / 'config.json').write_text((run / 'config.json').read_text())

    @pytest.mark.parametrize('ending', ['npz', 'parquet'])
    def test_a_full_disk_leaves_nothing_behind(self, mistake, monkeypatch, ending):
        def fail(*arguments, **options):
            raise OSError(28, 'No space left on device')

        monkeypatch.setattr(np, 'savez', fail)
        monkeypatch.setattr(parquet, 'write_table', fail)
        message = mistake(out=f'x.{ending}')
        assert f'x.{ending} cannot be written: No space left on device; choose another' in message

    def test_parquet_without_pyarrow(self, mistake, monkeypatch):
        monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
        assert 'pip install pyarrow, or write an .npz' in mistake(out='x.parquet')


def test_extraction_keeps_the_order_of_what_is_in_flight():
    """Seven batches of two images, the last of them padding in part: more than wait for their features at a time."""
    numbers = np.arange(14)
    views = np.broadcast_to(numbers[:, None, None, None, None], (14, 1, 2, 2, 3)).astype(np.float32)
    mask = (numbers < 13).astype(np.float32)
    batches = [
        {'views': views[rows], 'label': numbers[rows] + 100, 'mask': mask[rows], 'index': numbers[rows]}
        for rows in (slice(start, start + 2) for start in range(0, 14, 2))
    ]
    counts = []
    mesh = sharding.make_mesh(jax.devices()[:2])
    found = extract(jax.jit(lambda images: images.mean((1, 2))), iter(batches), mesh, counts.append)
    np.testing.assert_array_equal(found.values[:, 0], numbers[:13])
    np.testing.assert_array_equal(found.labels, numbers[:13] + 100)
    np.testing.assert_array_equal(found.index, numbers[:13])
    assert counts == [2] * 6 + [1]
