"""Where images become views changes neither which images stand in a batch nor what becomes of them."""

import io
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from simclr_jax import sharding
from simclr_jax.build import make_task
from simclr_jax.cli.main import main
from simclr_jax.config import base_config, with_values
from simclr_jax.data import feed as feeds
from simclr_jax.data.feed import open_feed, plan_feed
from simclr_jax.data.resident import DecodedBatches, ResidentBatches
from simclr_jax.data.sources import load_examples
from simclr_jax.data.spec import DataError, Decoded, Encoded, Examples, Files, Share
from support.runs import DIGITS_HERE, assert_same_bits, mesh_of, model_of, rows_of

FEEDS = ('host', 'hybrid', 'decoded', 'resident')
SIZE, BATCH = 16, 64


def png(height, width):
    file = io.BytesIO()
    Image.new('RGB', (width, height)).save(file, 'PNG')
    return file.getvalue()


@pytest.fixture(scope='module')
def config():
    config = base_config()
    config.data.source, config.data.name, config.data.image_size = 'digits', '', SIZE
    config.model.depth, config.model.width, config.head.layers = 6, 0.125, 2
    config.augment.views = ('crop flip jitter drop blur', 'crop flip jitter drop')
    config.batch_size = BATCH
    return config


@pytest.fixture(scope='module')
def examples(config):
    return load_examples(config.data, 'train')


def feed_of(name, config, examples, num_devices=1, platform=None):
    mesh = sharding.make_mesh(jax.devices()[:num_devices])
    return open_feed(with_values(config, {'data.feed': name}), examples, mesh, platform)


def batches_of(name, config, examples, num_devices=1):
    """Endless (global batch, views)."""
    feed = feed_of(name, config, examples, num_devices)
    mesh = sharding.make_mesh(jax.devices()[:num_devices])
    views_of = jax.jit(feed.make_views)
    for step, batch in enumerate(feed.batches(0)):
        batch = sharding.to_global(batch, mesh)
        yield batch, views_of(batch, jax.random.fold_in(jax.random.key(5), step))


class TestChoice:
    @pytest.mark.parametrize(
        'name, platform, expected',
        [
            ('auto', 'cpu', 'host'),
            ('auto', 'gpu', 'resident'),
            ('auto', 'tpu', 'resident'),
            *((name, 'cpu', name) for name in FEEDS),
        ],
    )
    def test_small_sets_are_resident_on_accelerators(self, config, examples, name, platform, expected):
        feed = feed_of(name, config, examples, platform=platform)
        assert feed.name == expected
        assert feed.examples.ids() == examples.ids()

    def test_images_of_several_sizes_are_decoded_in_each_epoch(self, config):
        examples = Examples('some', 2, Encoded([png(4, 4), png(5, 4)]), np.zeros(2, np.int32), ('a',))
        for name, platform, expected in (('auto', 'gpu', 'decoded'), ('auto', 'tpu', 'hybrid'), ('decoded',) * 3):
            feed = feed_of(name, config, examples, platform=platform)
            assert (feed.name, feed.examples) == (expected, examples)
        with pytest.raises(DataError, match=r'several sizes, \(4, 4\) and \(5, 4\); choose data.feed=decoded'):
            feed_of('resident', config, examples)

    def test_unless_an_operation_comes_before_a_crop(self, config):
        examples = Examples('some', 2, Encoded([png(4, 4), png(5, 4)]), np.zeros(2, np.int32), ('a',))
        for shared, views in (('', ('crop', 'flip crop')), ('blur crop', ('', '')), ('', ('crop', 'flip'))):
            late = with_values(config, {'augment.shared': shared, 'augment.views': views})
            feed = feed_of('auto', late, examples, platform='gpu')
            assert (feed.name, feed.examples) == ('hybrid', examples)
            with pytest.raises(
                DataError, match=r'several sizes, .*, and augment\.shared=(.|\n)*begin each view with'
            ) as told:
                feed_of('decoded', late, examples)
            assert 'choose data.feed=decoded' not in str(told.value)
            # Nothing is known of the images: those of one size are planned, which such views can be made of.
            planned = plan_feed(with_values(late, {'data.feed': 'decoded'}), sharding.make_mesh(jax.devices()[:1]))
            assert 'sizes' not in planned.batch
        for shared, views in (('crop flip', ('', 'flip')), ('', ('crop', ''))):
            early = with_values(config, {'augment.shared': shared, 'augment.views': views})
            assert feed_of('auto', early, examples, platform='gpu').name == 'decoded'

    @pytest.mark.parametrize('name', ['auto', 'decoded', 'resident'])
    def test_nothing_begins_where_no_image_is_readable(self, config, name):
        examples = Examples('some', 2, Files(['a.png', 'b.png']), np.zeros(2, np.int32), ('a',))
        with pytest.raises(DataError, match=r'2 of 2 files of some are not readable images(.|\n)*b\.png'):
            feed_of(name, config, examples, platform='gpu')

    def test_a_large_set_stays_on_the_host(self, config, monkeypatch):
        monkeypatch.setattr(feeds, 'RESIDENT_BYTES', 47)
        examples = Examples('some', 1, Decoded(np.zeros((1, 4, 4, 3), np.uint8)), np.zeros(1, np.int32), ('a',))
        feed = feed_of('auto', config, examples, platform='gpu')
        assert (feed.name, feed.examples) == ('decoded', examples)
        assert 'sizes' not in feed.batch


class TestWithoutTensorFlow:
    """TensorFlow is said to be missing. whole/test_without_tensorflow.py blocks it."""

    @pytest.fixture(autouse=True)
    def missing(self, monkeypatch):
        monkeypatch.setattr(feeds, 'has_tensorflow', lambda: False)

    def test_small_sets_are_resident_and_larger_ones_decoded(self, config, examples, monkeypatch):
        assert feed_of('auto', config, examples, platform='cpu').name == 'resident'
        monkeypatch.setattr(feeds, 'RESIDENT_BYTES', examples.content.images.nbytes - 1)
        assert feed_of('auto', config, examples, platform='cpu').name == 'decoded'

    def test_so_are_images_of_several_sizes(self, config):
        examples = Examples('some', 2, Encoded([png(4, 4), png(5, 4)]), np.zeros(2, np.int32), ('a',))
        assert feed_of('auto', config, examples, platform='cpu').name == 'decoded'

    def test_images_larger_than_the_free_memory(self, config, examples, monkeypatch):
        monkeypatch.setattr(feeds, '_free_bytes', lambda: 1000)
        with pytest.raises(DataError, match=r'digits/train takes 275,904 bytes in memory, more than 1,000; choose'):
            feed_of('resident', config, examples)


@pytest.mark.parametrize('name', ['decoded', 'resident'])
def test_a_folder_that_fits_is_taken_whole(config, name, tmp_path):
    """Of any format. What is not readable is left out and named, up to data.max_unreadable."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)
    paths = [str(tmp_path / f'{number}.{kind}') for number, kind in enumerate(('png', 'bmp', 'png', 'webp', 'bmp'))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path, **({'lossless': True} if path.endswith('webp') else {}))
    (tmp_path / '2.png').write_text('no image')
    examples = Examples('some', 5, Files(paths), np.arange(5, dtype=np.int32), tuple('abcde'))
    config = with_values(config, {'batch_size': 4, 'data.max_unreadable': 0.2})
    feed = feed_of(name, config, examples)
    batch = jax.device_get(next(feed.batches(0)))
    assert feed.examples.notes == (f'Skipped, not a readable image: {paths[2]}',)
    np.testing.assert_array_equal(np.sort(batch['label']), [0, 1, 3, 4])
    np.testing.assert_array_equal(batch['images'], pixels[batch['label']])
    with pytest.raises(DataError, match=r'1 of 5 files of some are not readable images, .*0\.1 allows(.|\n)*2\.png'):
        feed_of(name, with_values(config, {'data.max_unreadable': 0.1}), examples)


def test_decoded_and_resident_are_the_same_batches(config, examples):
    """Also from another step on, and in the shares of several processes."""
    resident, decoded = (feed_of(name, config, examples).batches(21) for name in ('resident', 'decoded'))
    arrays = examples.content.images, examples.labels
    order = {'batch_size': BATCH, 'seed': config.seed, 'start_step': 21}
    shares = [DecodedBatches(*arrays, share=Share(number, 2), **order) for number in range(2)]
    for _ in range(3):
        expected, found, parts = jax.device_get(next(resident)), next(decoded), [next(share) for share in shares]
        assert found.keys() == expected.keys()
        for name, rows in expected.items():
            assert found[name].dtype == rows.dtype
            np.testing.assert_array_equal(found[name], rows)
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), rows)


@pytest.mark.parametrize('name', FEEDS)
def test_a_batch_is_what_the_feed_says(config, examples, name):
    """In shape and dtype, so that a step is compiled without data; planned and opened feeds agree."""
    config = with_values(config, {'data.image_size': 8})
    if name == 'decoded':
        # Of several sizes, which is what a plan expects of images that are not here.
        files = [png(4 + number % 3, 5) for number in range(BATCH)]
        examples = Examples('some', BATCH, Encoded(files), np.zeros(BATCH, np.int32), ('a',))
    feed = feed_of(name, config, examples)
    batch = next(feed.batches(0))
    described = {key: (rows.shape, rows.dtype) for key, rows in feed.batch.items()}
    assert {key: (rows.shape, rows.dtype) for key, rows in batch.items()} == described
    planned = plan_feed(with_values(config, {'data.feed': name}), sharding.make_mesh(jax.devices()[:1]))
    assert planned.batch == feed.batch
    assert planned.examples is None


class TestResident:
    def batches(self, num_devices=1, start_step=0):
        images = np.random.default_rng(0).integers(0, 256, (203, 4, 6, 3)).astype(np.uint8)
        mesh = sharding.make_mesh(jax.devices()[:num_devices])
        labels = np.arange(203, dtype=np.int32)
        return images, ResidentBatches(images, labels, mesh, batch_size=16, seed=3, start_step=start_step)

    def test_every_epoch_has_every_image_once(self):
        _, batches = self.batches()
        order = np.concatenate([next(batches)['index'] for _ in range(2 * 203 // 16 + 1)])
        epochs = order[:203], order[203:406]
        assert all(np.array_equal(np.sort(epoch), np.arange(203)) for epoch in epochs)
        assert not np.array_equal(*epochs)

    @pytest.mark.parametrize('num_devices', [1, 8])
    def test_rows_are_the_images_that_their_index_names(self, num_devices):
        images, batches = self.batches(num_devices)
        for _ in range(15):
            batch = jax.device_get(next(batches))
            np.testing.assert_array_equal(batch['images'], images[batch['index']])
            np.testing.assert_array_equal(batch['label'], batch['index'])

    def test_the_order_does_not_depend_on_devices_or_on_the_start(self):
        one, eight, late = self.batches()[1], self.batches(8)[1], self.batches(start_step=13)[1]
        orders = [np.stack([next(batches)['index'] for _ in range(16)]) for batches in (one, eight)]
        np.testing.assert_array_equal(*orders)
        np.testing.assert_array_equal(np.stack([next(late)['index'] for _ in range(3)]), orders[0][13:])

    def test_each_device_holds_its_share(self):
        _, batches = self.batches(8)
        assert {shard.data.shape[0] for shard in batches._images.addressable_shards} == {26}


@pytest.mark.slow
@pytest.mark.parametrize('name', ['hybrid', 'resident'])
def test_views_do_not_depend_on_devices_or_parts(config, examples, name):
    (batch, one), (_, eight) = (next(batches_of(name, config, examples, count)) for count in (1, 8))
    assert (one.shape, one.dtype) == ((BATCH, 2, SIZE, SIZE, 3), jnp.float32)
    np.testing.assert_allclose(eight, one, atol=1e-6)
    part = jax.tree.map(lambda rows: rows[BATCH // 2 :], batch)
    again = jax.jit(feed_of(name, config, examples).make_views)(part, jax.random.fold_in(jax.random.key(5), 0))
    np.testing.assert_allclose(again, one[BATCH // 2 :], atol=1e-6)


@pytest.mark.slow
def test_all_feeds_make_the_same_views_on_average(config, examples):
    """Pixels, contrast within a view, and how alike the two views of an image are."""
    measures = {}
    for name in FEEDS:
        found = [views for _, (_, views) in zip(range(12), batches_of(name, config, examples), strict=False)]
        views = np.concatenate(found).astype(np.float64)
        likeness = np.abs(views[:, 0] - views[:, 1]).mean((1, 2, 3))
        measures[name] = np.stack([views.mean((1, 2, 3, 4)), views.std((2, 3, 4)).mean(1), likeness])
    expected = measures['host']
    error = expected.std(axis=1) / np.sqrt(expected.shape[1])
    for name in ('hybrid', 'decoded', 'resident'):
        distance = np.abs(measures[name].mean(axis=1) - expected.mean(axis=1))
        # Two samples' means lie sqrt(2) errors apart.
        assert np.all(distance < 4.5 * np.sqrt(2) * error), name


def test_bytes_round_what_floats_say(config, examples):
    config = with_values(config, {'augment.views': ('crop', 'crop')})
    host, hybrid = (next(feed_of(name, config, examples).batches(0))['views'] for name in ('host', 'hybrid'))
    assert hybrid.dtype == np.uint8
    np.testing.assert_allclose(hybrid / 255.0, host, atol=0.5 / 255 + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('feed', ['hybrid', 'resident'])
def test_a_run_learns_and_resumes_to_the_same_bits(feed, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, 'make_mesh', mesh_of(2))

    def train(workdir, *more):
        options = [f'--config.data.feed={feed}', '--config.knn.every_epochs=0', f'--workdir={workdir}']
        assert main(['train', *DIGITS_HERE, *options, *more]) == 0

    train(tmp_path / 'whole')
    shutil.copytree(tmp_path / 'whole', tmp_path / 'parts')
    shutil.rmtree(tmp_path / 'parts' / 'checkpoints' / '12')
    train(tmp_path / 'parts')
    assert_same_bits(model_of(tmp_path / 'parts')[0], model_of(tmp_path / 'whole')[0])
    losses = [row['loss'] for row in rows_of(tmp_path / 'whole') if 'loss' in row]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_the_step_makes_the_views_by_image(config, examples):
    """What the network sees in a microbatch is what it sees of these images in the whole batch."""
    batch, views = next(batches_of('resident', config, examples))
    mesh = sharding.make_mesh(jax.devices()[:1])
    make_views = feed_of('resident', config, examples).make_views
    ready, made = (make_task(config, 10, mesh, *more) for more in ((), (make_views,)))
    variables = ready.init(jax.random.key(0))
    key = jax.random.fold_in(jax.random.key(5), 0)
    expected, _ = jax.jit(ready.outputs)(variables, {**batch, 'views': views}, key)
    found, _ = jax.jit(made.outputs)(variables, batch, key)
    np.testing.assert_allclose(found['projection'], expected['projection'], atol=1e-4)
