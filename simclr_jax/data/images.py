"""Decoding of image files by Pillow, the same for every source. No TensorFlow.

| in the file                              | in the pixels                                             |
|------------------------------------------|-----------------------------------------------------------|
| one channel, also 1 bit                  | repeated on the three channels                            |
| alpha, or a transparent colour           | dropped. The stored colour stays.                         |
| palette                                  | its colours                                               |
| 16 bits per channel                      | the high byte                                             |
| CMYK                                     | converted to RGB                                          |
| several frames (GIF, APNG, WebP)         | the first frame                                           |
| EXIF orientation                         | ignored, as in the reference implementation               |
| 12 bits per channel (JPEG)               | not readable                                              |
"""

import io
import os
from collections.abc import Callable
from typing import IO

import numpy as np
from etils import epath
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from simclr_jax.config.fields import MAX_IMAGE_PIXELS
from simclr_jax.config.paths import is_remote
from simclr_jax.config.storage import storage_errors

# First bytes of a file, and Pillow's class for it. `Image.open` would add a limit of its own on the number of pixels.
_FORMATS: tuple[tuple[bytes, Callable[[io.BytesIO], ImageFile.ImageFile]], ...] = (
    (b'\xff\xd8\xff', JpegImagePlugin.JpegImageFile),
    (b'\x89PNG\r\n\x1a\n', PngImagePlugin.PngImageFile),
    (b'GIF8', GifImagePlugin.GifImageFile),
    (b'BM', BmpImagePlugin.BmpImageFile),
    (b'RIFF', WebPImagePlugin.WebPImageFile),
)

# Bytes that one call reads from a storage.
_PART = 2**20
# Largest number of stored bytes per allowed pixel: four channels of 16 bits.
_BYTES_PER_PIXEL = 8


class ImageError(ValueError):
    """A file is not a readable image. Callers count such files, name them and leave them out."""


def decode(file: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> np.ndarray:
    """Decodes a JPEG, PNG, GIF, BMP or WebP. The module's docstring says what becomes of each kind of pixel.

    Args:
        file: Content of the file.
        max_pixels: Largest number of pixels. It is compared with the file's header, before anything is unpacked.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ImageError: The file is damaged, has another format, or has more pixels.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new('L', (3, 2), 7).save(file, 'PNG')
        >>> decode(file.getvalue()).shape
        (2, 3, 3)
    """
    try:
        picture = _open(file, max_pixels)
        picture.load()
        return _three_channels(picture)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # Damaged bytes raise errors of many classes in Pillow's readers.
        raise ImageError(f'not a readable image: {error}') from error


def read(path: str, max_pixels: int = MAX_IMAGE_PIXELS) -> np.ndarray:
    """Reads an image file, local or gs://. The arguments and the result are those of `decode`.

    Raises:
        ImageError: The file cannot be opened, or is not a readable image.
    """
    return decode(read_bytes(path, max_pixels), max_pixels)


def read_bytes(path: str, max_pixels: int = MAX_IMAGE_PIXELS) -> bytes:
    """Reads an image file without decoding it.

    Args:
        path: Path of the file, local or gs://.
        max_pixels: Largest number of pixels. A file that is larger than such an image can be is not read.

    Raises:
        ImageError: The file cannot be opened, or is too large.
    """
    most = _BYTES_PER_PIXEL * max_pixels
    try:
        if is_remote(path):
            with epath.Path(path).open('rb') as file:
                content = _beginning(file, most)
            size = len(content)
        else:
            with open(path, 'rb') as file:
                size = os.fstat(file.fileno()).st_size
                content = file.read() if size <= most else b''
    except (OSError, *storage_errors()) as error:
        raise ImageError(f'cannot be opened: {error}') from error
    if size > most:
        raise ImageError(f'{size:,} bytes, more than an image of data.max_image_pixels={max_pixels} has')
    return content


def _beginning(file: IO[bytes], most: int) -> bytes:
    """The content of a file of a storage. Of a longer one, at least one byte more than `most`.

    The size would be a request of its own.
    """
    parts, size = [], 0
    while size <= most and (part := file.read(_PART)):
        parts.append(part)
        size += len(part)
    return b''.join(parts)


def _open(file: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Reads the header of an image file."""
    for beginning, reader in _FORMATS:
        if file.startswith(beginning):
            picture = reader(io.BytesIO(file))
            break
    else:
        raise ImageError('not a JPEG, PNG, GIF, BMP or WebP')
    width, height = picture.size
    if width * height > max_pixels:
        raise ImageError(f'{width} x {height} pixels, more than data.max_image_pixels={max_pixels}')
    if not width * height:
        raise ImageError('no pixels')
    return picture


def _three_channels(picture: Image.Image) -> np.ndarray:
    """The pixels of a loaded picture, uint8 [H, W, 3]."""
    if picture.mode.startswith('I'):
        # Pillow's conversion to RGB would clip 16 bits.
        high_bytes = (np.asarray(picture).astype(np.int64) >> 8).astype(np.uint8)
        return np.repeat(high_bytes[..., None], 3, axis=-1)
    # Pillow warns about a transparent colour, which is dropped here.
    picture.info.pop('transparency', None)
    return np.asarray(picture if picture.mode == 'RGB' else picture.convert('RGB'))
