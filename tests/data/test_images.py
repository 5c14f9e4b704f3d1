"""The one decoder of image files: pixels of every format and mode, limits, and what is no image."""

import contextlib
import os
import warnings

import numpy as np
import pytest
from PIL import Image

from simclr_jax.config import base_config
from simclr_jax.data import images
from simclr_jax.data.spec import DataError, Decoded, three_channels
from support import image_files


@pytest.mark.parametrize('name', image_files.READABLE)
def test_every_format_and_mode_has_three_channels(name):
    decoded = images.decode(image_files.READABLE[name])
    assert (decoded.dtype, decoded.shape) == (np.uint8, (10, 12, 3))
    if name in image_files.PIXELS:
        np.testing.assert_array_equal(decoded, image_files.PIXELS[name])


def test_lossy_formats_are_near_the_original():
    """Noise at Pillow's quality 75, with full colour: within 20 units on average it is the same picture."""
    for name in ('jpeg with full colour', 'cmyk jpeg'):
        error = images.decode(image_files.READABLE[name]).astype(int) - image_files.COLOR
        assert np.abs(error).mean() < 20, name


def test_the_orientation_is_ignored():
    turned, plain = (images.decode(image_files.READABLE[name]) for name in ('turned jpeg', 'jpeg'))
    np.testing.assert_array_equal(turned, plain)


@pytest.mark.parametrize('name', image_files.UNREADABLE)
def test_damaged_files_are_no_images(name):
    with pytest.raises(images.ImageError):
        images.decode(image_files.UNREADABLE[name])


@pytest.mark.parametrize('name', image_files.FORMATS)
def test_the_limit_on_pixels(name):
    assert images.decode(image_files.FORMATS[name], 120).shape == (10, 12, 3)
    with pytest.raises(images.ImageError, match=r'12 x 10 pixels, more than data\.max_image_pixels=119'):
        images.decode(image_files.FORMATS[name], 119)


def test_a_bomb_is_refused_before_it_is_unpacked():
    """Its header says 10^12 pixels. Pillow's own limits neither warn nor raise before ours."""
    with warnings.catch_warnings(action='error'):
        for side in (10_000, 10**6):
            with pytest.raises(images.ImageError, match=r'more than data\.max_image_pixels=89478485'):
                images.decode(image_files.png_of_size(side, side))


def test_the_limit_can_be_higher_than_pillows():
    """Pillow's own is 179 million. The file is read as far as it goes, which is not far."""
    with pytest.raises(images.ImageError, match=r'not a readable image: (?!.*bomb)'):
        images.decode(image_files.png_of_size(14_000, 14_000, color_type=0), 10**9)


def test_the_default_is_pillows():
    assert base_config().data.max_image_pixels == Image.MAX_IMAGE_PIXELS


def test_a_file_too_large_for_any_image_is_not_read(tmp_path):
    with open(tmp_path / 'large.jpg', 'wb') as file:
        file.truncate(2**40)
    with pytest.raises(images.ImageError, match='1,099,511,627,776 bytes, more than an image'):
        images.read_bytes(str(tmp_path / 'large.jpg'))


def test_files_that_cannot_be_opened_are_no_images(tmp_path):
    os.symlink(tmp_path / 'nothing', tmp_path / 'broken.png')
    for path in (tmp_path / 'absent.png', tmp_path / 'broken.png', tmp_path):
        with pytest.raises(images.ImageError, match='cannot be opened'):
            images.read_bytes(str(path))
    (tmp_path / 'whole.png').write_bytes(image_files.READABLE['png'])
    np.testing.assert_array_equal(images.decode(images.read_bytes(str(tmp_path / 'whole.png'))), image_files.COLOR)


@pytest.mark.parametrize('name', sorted(image_files.FORMATS))
def test_a_file_that_breaks_off_in_its_header_is_no_readable_image(name):
    for length in range(64):
        file = image_files.FORMATS[name][:length]
        for read in (images.decode, images.decode_mask, lambda part: images.decode_within(part, 4)):
            with pytest.raises(images.ImageError):
                read(file)
        with contextlib.suppress(images.ImageError):
            # The size alone may be there.
            images.size_of(file)


@pytest.mark.parametrize('make', [Decoded, three_channels])
def test_arrays_of_floats_are_refused_with_their_first_damaged_image(make):
    floats = np.random.default_rng(0).random((5, 4, 4, 3)).astype(np.float32)
    with pytest.raises(DataError, match=r'images are float32 \[5, 4, 4, 3\]; must be .*; floats in .* numpy\.round'):
        make(floats)
    for value in (np.nan, np.inf, -np.inf):
        damaged = floats.copy()
        damaged[[2, 4], 0, 0, 0] = value
        with pytest.raises(DataError, match='pixels of image 2 are not finite'):
            make(damaged)


@pytest.mark.parametrize('shape', [(2, 0, 4, 3), (2, 4, 0, 3), (2, 4, 4), (2, 4, 4, 1)])
def test_decoded_images_have_three_channels_and_some_pixels(shape):
    with pytest.raises(DataError, match=r'images are uint8 .*; must be uint8 \[N, H, W, 3\]'):
        Decoded(np.zeros(shape, np.uint8))
