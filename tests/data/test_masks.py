"""Images with masks: pairs by name, numbers of classes, what is refused, and views of both together."""

import os

import numpy as np
import pytest
from PIL import Image

from simclr_jax.data.images import ImageError, decode_mask, size_of
from simclr_jax.data.mask_views import (
    GREY,
    SCALES,
    evaluation_batches,
    fitted_shape,
    fitted_view,
    random_view,
    train_batches,
    unfitted,
)
from simclr_jax.data.masks import Coding, open_folders, open_tfds, with_classes
from simclr_jax.data.spec import DataError, Share
from simclr_jax.metrics.segmentation import IGNORED
from support import image_files

PALETTE = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) % 5, 'P')
PALETTE.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path)


@pytest.fixture
def folders(tmp_path):
    """Images of two sizes, JPEG and PNG, below folders, with masks of the numbers 1 to 3 and 255."""
    generator = np.random.default_rng(0)
    for split in ('train', 'test'):
        for number in range(5):
            shape = (6 + number % 2, 9)
            mask = generator.choice(np.array([1, 2, 3, 255], np.uint8), shape)
            image = np.stack([np.full(shape, number, np.uint8), mask, mask], axis=-1)
            write(tmp_path / 'images' / split / 'sub' / f'{number}.{("png", "jpg")[number % 2]}', image)
            write(tmp_path / 'masks' / split / 'sub' / f'{number}.png', mask)
    return tmp_path


def opened(root, split='train', coding=Coding(1), lists='', images='images/{split}', masks='masks/{split}'):  # noqa: B008
    return open_folders(f'{root}/{images}', f'{root}/{masks}', lists and f'{root}/{lists}', split, coding)


class TestDecoding:
    @pytest.mark.parametrize('bits', [4, 8])
    def test_indices_of_a_palette_are_classes_whatever_its_colours(self, bits):
        file = image_files.encode(PALETTE, bits=bits)
        np.testing.assert_array_equal(decode_mask(file), np.asarray(PALETTE))

    def test_grey_values_are_classes(self):
        np.testing.assert_array_equal(decode_mask(image_files.encode(image_files.GREY)), image_files.GREY)

    @pytest.mark.parametrize(
        'name, message',
        [
            ('png', 'RGB of 8 bits, but not one number a pixel'),
            ('grey png with alpha', 'grey with alpha of 8 bits'),
            ('16 bit grey png', 'grey of 16 bits'),
            ('1 bit png', 'grey of 1 bits'),
            ('grey jpeg', 'not a PNG'),
            ('gif', 'not a PNG'),
        ],
    )
    def test_what_is_no_mask(self, name, message):
        with pytest.raises(ImageError, match=message):
            decode_mask(image_files.READABLE[name])

    def test_a_damaged_mask(self):
        with pytest.raises(ImageError, match='not a readable image'):
            decode_mask(image_files.encode(PALETTE)[:60])

    def test_a_mask_that_breaks_off_anywhere(self):
        file = image_files.encode(PALETTE)
        for length in range(file.index(b'IDAT')):
            with pytest.raises(ImageError, match=r'not a (readable image|PNG)'):
                decode_mask(file[:length])

    @pytest.mark.parametrize('name', sorted(image_files.FORMATS))
    def test_size_from_the_header(self, name):
        assert size_of(image_files.FORMATS[name]) == image_files.COLOR.shape[:2]


class TestPairs:
    def test_have_the_same_path_up_to_the_extension(self, folders):
        masked = with_classes(opened(folders))
        assert (masked.images.size, masked.num_classes, masked.images.class_names) == (5, 3, ('1', '2', '3'))
        for index in range(5):
            image, classes = masked.pair(index)
            assert masked.images.id_of(index).endswith(f'sub/{index}.{("png", "jpg")[index % 2]}')
            assert image.shape[:2] == classes.shape
            if index % 2 == 0:
                np.testing.assert_array_equal(image[..., 0], index)
                # The mask itself is in the second channel. Its numbers start at 1.
                np.testing.assert_array_equal(np.where(classes == IGNORED, 255, classes + 1), image[..., 1])

    def test_of_a_list(self, folders):
        (folders / 'lists').mkdir()
        (folders / 'lists' / 'val.txt').write_text('sub/3\n\nsub/1\n')
        masked = opened(folders, 'val', lists='lists/{split}.txt', images='images/train', masks='masks/train')
        assert [masked.images.id_of(index)[-5:] for index in range(2)] == ['3.jpg', '1.jpg']
        assert masked.images.name.endswith('images/train (val)')

    def test_a_share_is_drawn_by_the_seed_and_lies_in_larger_ones(self, folders):
        masked = with_classes(opened(folders))
        small, large = masked.part(0.4, seed=0), masked.part(0.8, seed=0)
        assert (small.images.size, large.images.size) == (2, 4)
        assert set(small.images.ids()) < set(large.images.ids())
        assert small.num_classes == masked.num_classes
        assert len({tuple(masked.part(0.4, seed).images.ids()) for seed in range(9)}) > 1
        for image, mask in zip(large.images.ids(), large.masks.paths, strict=True):
            assert image.split('/')[-1][0] == mask.split('/')[-1][0]
        assert masked.part(0.01, seed=0).images.size == 1

    @pytest.mark.parametrize('kind', ['images', 'masks'])
    def test_the_digest_changes_with_pixels_but_not_with_times(self, folders, kind):
        first = with_classes(opened(folders)).digest
        path = folders / kind / 'train' / 'sub' / '0.png'
        pixels = np.array(Image.open(path))
        write(path, pixels)
        os.utime(path, (0, 0))
        assert with_classes(opened(folders)).digest == first
        pixels[0, 0] = 1 if (pixels[0, 0] == 2).all() else 2
        write(path, pixels)
        assert with_classes(opened(folders)).digest != first

    def test_the_digest_changes_with_the_names_of_classes(self, folders):
        assert with_classes(opened(folders), ('a', 'b', 'c')).digest != with_classes(opened(folders)).digest

    def test_what_is_left_out_is_noted(self, folders):
        (folders / 'images/train/sub/9.png').symlink_to(folders / 'nowhere.png')
        (folders / 'masks/train/sub/.0.png').write_bytes(b'')
        images, masks = opened(folders).images.notes
        assert images == f'{folders}/images/train: left out 1 broken links (9.png).'
        assert masks == f'{folders}/masks/train: left out 1 hidden files (.0.png).'

    def test_ignored_numbers(self):
        numbers = np.array([0, 1, 2, 200, 255], np.uint8)
        assert Coding(1, 200).classes(numbers).tolist() == [IGNORED, 0, 1, IGNORED, 254]
        assert Coding().classes(numbers).tolist() == [0, 1, 2, 200, IGNORED]


class TestMistakes:
    @pytest.mark.parametrize(
        'images, masks, message',
        [
            ('nowhere', 'masks/train', 'segmentation.images=.*nowhere: there is no such directory'),
            ('images/train', 'nowhere', 'segmentation.masks=.*nowhere: there is no such directory'),
            ('images/train', 'masks/train/sub', 'have no name in common'),
        ],
    )
    def test_folders(self, folders, images, masks, message):
        with pytest.raises(DataError, match=message):
            opened(folders, images=images, masks=masks)

    def test_an_empty_folder(self, folders):
        (folders / 'images' / 'val').mkdir()
        with pytest.raises(DataError, match='holds no image files'):
            opened(folders, 'val')

    def test_an_image_without_mask(self, folders):
        (folders / 'masks/train/sub/3.png').unlink()
        with pytest.raises(DataError, match=r'1 of 5 images have no mask in .*: sub/3; remove'):
            opened(folders)

    def test_two_images_of_one_name(self, folders):
        write(folders / 'images/train/sub/1.png', image_files.COLOR)
        with pytest.raises(DataError, match='differ in the extension alone; remove one'):
            opened(folders)

    @pytest.mark.parametrize('text, message', [('sub/9', 'names sub/9, which'), ('', 'is empty')])
    def test_lists(self, folders, text, message):
        (folders / 'list.txt').write_text(text)
        with pytest.raises(DataError, match=f'segmentation.lists=.* {message}'):
            opened(folders, lists='list.txt')

    def test_a_list_that_is_not_there(self, folders):
        with pytest.raises(DataError, match=r'segmentation.lists=.*list.txt cannot be read'):
            opened(folders, lists='list.txt')

    @pytest.mark.parametrize(
        'pixels, message',
        [
            (np.ones((6, 8), np.uint8), 'has 6 x 8 pixels, .*0.png has 6 x 9; make the mask as large'),
            (np.ones((6, 9, 3), np.uint8), 'RGB of 8 bits, but not one number a pixel; a mask is a PNG of 8 bits'),
        ],
    )
    def test_masks(self, folders, pixels, message):
        write(folders / 'masks/train/sub/0.png', pixels)
        with pytest.raises(DataError, match=f'(?s){message}.*1 of 5 pairs cannot be used'):
            with_classes(opened(folders))

    def test_class_255_where_another_number_is_ignored(self, folders):
        with pytest.raises(
            DataError, match=r'(?s)0.png: the number 255 would be class 255, .* at most 255 classes.*5 of'
        ):
            with_classes(opened(folders, coding=Coding(0, 0)))

    def test_an_unreadable_image(self, folders):
        (folders / 'images/train/sub/0.png').write_text('no image')
        with pytest.raises(DataError, match='not a JPEG, PNG, GIF, BMP or WebP; repair or remove it'):
            with_classes(opened(folders))

    def test_a_class_that_only_the_test_has(self, folders):
        write(folders / 'masks/test/sub/0.png', np.full((6, 9), 7, np.uint8))
        names = with_classes(opened(folders)).images.class_names
        with pytest.raises(DataError, match='hold the number 7, but there are only 3 classes from 1 up'):
            with_classes(opened(folders, 'test'), names)

    def test_one_class_is_too_few(self, folders):
        for number in range(5):
            write(folders / f'masks/train/sub/{number}.png', np.full((6 + number % 2, 9), 1, np.uint8))
        with pytest.raises(DataError, match='hold 1 classes besides the ignored pixels'):
            with_classes(opened(folders))


def blocks(generator):
    """A mask of large blocks, and an image that shows the classes in its first channel."""
    classes = generator.integers(0, 4, (3, 4), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
    return np.stack([60 * classes + 10, 0 * classes, 0 * classes], axis=-1), classes


class TestViews:
    @pytest.mark.parametrize('seed', range(20))
    def test_image_and_mask_move_together(self, seed):
        generator = np.random.default_rng(seed)
        image, classes = blocks(generator)
        view, wanted = random_view(image, classes, 48, generator)
        assert (view.shape, wanted.shape) == ((48, 48, 3), (48, 48))
        np.testing.assert_array_equal(wanted == IGNORED, (view == GREY).all(axis=-1))
        # Bilinear values lie between those of neighbours, so that only pixels at the borders of blocks may differ.
        same = np.round((view[..., 0] - 10.0) / 60) == wanted
        assert same[wanted != IGNORED].mean() > 0.85

    def test_scales_and_places_are_those_of_the_recipe(self):
        """The shorter side is 0.5 to 2 times the view, every second view is flipped, and windows lie everywhere."""
        ramp = np.arange(64, dtype=np.uint8)
        image = np.stack(np.broadcast_arrays(ramp[:, None], ramp, 0 * ramp), axis=-1)
        heights, flipped, top = [], [], []
        for seed in range(200):
            view, wanted = random_view(image, np.zeros((64, 64), np.uint8), 64, np.random.default_rng(seed))
            seen = wanted != IGNORED
            rows, columns = (values[seen.any(axis=1)][:, seen.any(axis=0)] for values in (view[..., 0], view[..., 1]))
            heights.append(len(rows) / (1.0 + rows[-1, 0] - rows[0, 0]))
            flipped.append(columns[0, 0] > columns[0, -1])
            top.append(rows[0, 0])
        assert SCALES[0] - 0.05 < min(heights) < 0.6
        assert 1.8 < max(heights) < SCALES[1] + 0.1
        # 200 draws: three deviations are 0.11.
        assert abs(np.mean(flipped) - 0.5) < 0.11
        assert max(top) > 20

    @pytest.mark.parametrize('shape', [(30, 40), (41, 17), (8, 8), (1, 50)])
    @pytest.mark.parametrize('size', [40, 64])
    def test_fitted_classes_come_back(self, shape, size):
        classes = np.random.default_rng(0).integers(0, 9, shape, dtype=np.uint8)
        view, wanted = fitted_view(np.zeros((*shape, 3), np.uint8), classes, size)
        height, width = fitted_shape(shape, size)
        assert max(height, width) == size
        assert (wanted[height:] == IGNORED).all()
        assert (wanted[:, width:] == IGNORED).all()
        assert (view[height:] == GREY).all()
        if size >= max(shape):
            # An enlarged mask holds every pixel of the original one.
            np.testing.assert_array_equal(unfitted(wanted, shape), classes)

    def test_batches_do_not_depend_on_processes_or_interruptions(self, folders):
        masked = with_classes(opened(folders))

        def batches(start_step, share=Share()):
            return train_batches(masked, 16, batch_size=4, seed=3, start_step=start_step, share=share)

        whole = [batch for batch, _ in zip(batches(0), range(4), strict=False)]
        resumed = next(batches(2))
        parts = [next(batches(2, Share(number, 2))) for number in range(2)]
        for name, rows in whole[2].items():
            np.testing.assert_array_equal(resumed[name], rows)
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), rows)
        # Each image once in an epoch, and another view of it in the next.
        seen = np.concatenate([batch['index'] for batch in whole])
        assert sorted(seen[:5]) == sorted(seen[5:10]) == list(range(5))
        assert not np.array_equal(whole[0]['views'], whole[2]['views'])

    def test_every_test_image_once(self, folders):
        masked = with_classes(opened(folders, 'test'))
        found = list(evaluation_batches(masked, 16, batch_size=4))
        assert [batch['index'].tolist() for batch in found] == [[0, 1, 2, 3], [4, -1, -1, -1]]
        assert [batch['mask'].tolist() for batch in found] == [[1, 1, 1, 1], [1, 0, 0, 0]]
        np.testing.assert_array_equal(found[1]['views'][0, 0], fitted_view(*masked.pair(4), 16)[0])


def test_tfds_with_masks_names_the_fields_of_an_evaluation(tmp_path, monkeypatch):
    pytest.importorskip('tensorflow_datasets', reason='the source tfds needs TensorFlow Datasets')
    from simclr_jax.data.tfds import load_masks

    def message(name, data_dir=''):
        with pytest.raises(DataError) as caught:
            load_masks(name, 'train', data_dir, memory_limit=2**20)
        assert 'data.name' not in str(caught.value)
        return str(caught.value)

    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    assert message('oxford_iiit_pe').startswith('segmentation.tfds=oxford_iiit_pe: TensorFlow Datasets cannot load it')
    assert message('huggingface:x').startswith('segmentation.tfds=huggingface:x: TensorFlow Datasets would fetch')
    unprepared = message('oxford_iiit_pet')
    assert unprepared.startswith('segmentation.tfds=oxford_iiit_pet is not prepared in ')
    assert '; set TFDS_DATA_DIR to the directory where it is, or prepare it: ' in unprepared
    # The directory of the pretraining goes before the environment.
    place = str(tmp_path / 'prepared')
    assert message('oxford_iiit_pet', place).endswith(f' build oxford_iiit_pet --data_dir={place}')


def test_tfds_with_masks(tmp_path):
    """Images and masks are read in one order. The numbers of the classes begin with 1, as in oxford_iiit_pet."""
    tfds = pytest.importorskip('tensorflow_datasets', reason='the source tfds needs TensorFlow Datasets')
    generator = np.random.default_rng(0)
    masks = [generator.integers(1, 4, (5, 6 + number, 1), dtype=np.uint8) for number in range(3)]

    class Shapes(tfds.core.GeneratorBasedBuilder):
        VERSION = '1.0.0'

        def _info(self):
            masks = tfds.features.Image(shape=(None, None, 1))
            features = {'image': tfds.features.Image(), 'segmentation_mask': masks}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {'train': self._generate_examples()}

        def _generate_examples(self):
            for number, mask in enumerate(masks):
                yield number, {'image': np.repeat(10 * mask, 3, axis=-1), 'segmentation_mask': mask}

    Shapes(data_dir=tmp_path).download_and_prepare()
    masked = with_classes(open_tfds('shapes', 'train', str(tmp_path), 2**20, Coding(1)))
    assert (masked.images.name, masked.num_classes) == ('shapes/train', 3)
    pairs = [masked.pair(index) for index in range(3)]
    for image, classes in pairs:
        np.testing.assert_array_equal(image[..., 0], 10 * (classes + 1))
    assert sorted(classes.shape for _, classes in pairs) == [(5, 6), (5, 7), (5, 8)]
    with pytest.raises(DataError, match=r'raise data\.memory_limit_gb'):
        open_tfds('shapes', 'train', str(tmp_path), 0, Coding(1))
    with pytest.raises(DataError, match=r"segmentation\.test_split='test': shapes has train"):
        open_tfds('shapes', 'test', str(tmp_path), 2**20, Coding(1))
