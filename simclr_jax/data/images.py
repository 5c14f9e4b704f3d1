"""Decoding of image files, the same for every source. No TensorFlow.

JPEGs are decoded by libjpeg-turbo through simplejpeg, faster than by Pillow and with its pixels. Everything else is
decoded by Pillow, which also decides what is not readable.

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

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np
import simplejpeg
from etils import epath
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from simclr_jax.config.fields import MAX_IMAGE_PIXELS
from simclr_jax.config.paths import is_remote
from simclr_jax.config.storage import storage_errors

# First bytes of a PNG, the place of its bits per channel and its kind of colour, and these kinds.
_PNG, _PNG_KIND = b'\x89PNG\r\n\x1a\n', slice(24, 26)
_PNG_GREY, _PNG_PALETTE = 0, 3
_PNG_COLORS = {0: 'grey', 2: 'RGB', 4: 'grey with alpha', 6: 'RGB with alpha'}

# First bytes of a file, and Pillow's class for it. `Image.open` would add a limit of its own on the number of pixels.
_FORMATS: tuple[tuple[bytes, Callable[[io.BytesIO], ImageFile.ImageFile]], ...] = (
    (b'\xff\xd8\xff', JpegImagePlugin.JpegImageFile),
    (_PNG, PngImagePlugin.PngImageFile),
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
    found = _decode_jpeg(file, max_pixels)
    if found is not None:
        return found.pixels
    with _image_errors():
        picture = _open(file, max_pixels)
        picture.load()
        return _three_channels(picture)


@contextlib.contextmanager
def _image_errors() -> Iterator[None]:
    """Turns errors of Pillow's readers into ImageError. Damaged bytes raise errors of many classes there."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(f'not a readable image: {error}') from error


@dataclasses.dataclass(frozen=True)
class Fitted:
    """An image that was made smaller, or not.

    Attributes:
        pixels: uint8 [H, W, 3].
        extent: Height and width of the image in these pixels. The last row and column may reach beyond it.
        size: Height and width in the file.
    """

    pixels: np.ndarray
    extent: tuple[float, float]
    size: tuple[int, int]


def decode_within(file: bytes, side: int, max_pixels: int = MAX_IMAGE_PIXELS) -> Fitted:
    """Decodes an image, made smaller where it is larger than needed.

    A large JPEG is decoded at the largest number of eighths of its size that is small enough, which costs less than
    a resize. Other images become as large as they may, each pixel the mean of those that it covers.

    Args:
        file: Content of the file.
        side: Largest height and width of the result, in pixels.
        max_pixels: See `decode`.

    Raises:
        ImageError: See `decode`.
    """
    found = _decode_jpeg(file, max_pixels, side)
    if found is None:
        pixels = decode(file, max_pixels)
        size = pixels.shape[:2]
        found = Fitted(pixels, size, size)
    return _shrink(found, side)


def _decode_jpeg(file: bytes, max_pixels: int, side: int | None = None) -> Fitted | None:
    """Decodes a JPEG that has no oddities. None for other files.

    Args:
        file: Content of the file.
        max_pixels: See `decode`.
        side: The result has the largest number of eighths of height and width with which both are at most this, or one
            eighth. None means the whole size.
    """
    if not file.startswith(b'\xff\xd8\xff'):
        return None
    try:
        *sides, colors, _ = simplejpeg.decode_jpeg_header(file)
        height, width = map(int, sides)
        if colors not in ('YCbCr', 'Gray'):
            return None
        _check_pixels(width, height, max_pixels)
        eighths = 8 if side is None else min(8, max(1, 8 * side // max(height, width)))
        least = (0, 0) if eighths == 8 else (-(-height * eighths // 8), -(-width * eighths // 8))
        pixels = simplejpeg.decode_jpeg(file, 'RGB', min_height=least[0], min_width=least[1])
        return Fitted(pixels, (height * eighths / 8, width * eighths / 8), (height, width))
    except ImageError:
        raise
    except ValueError:
        # Also the decoder's warnings about damaged data.
        return None


def _shrink(image: Fitted, side: int) -> Fitted:
    """Makes an image smaller, to at most `side` pixels of height and width."""
    longest = max(image.pixels.shape[:2])
    if longest <= side:
        return image
    height, width = (max(1, round(length * side / longest)) for length in image.pixels.shape[:2])
    pixels = np.asarray(Image.fromarray(image.pixels).resize((width, height), Image.Resampling.BOX))
    return Fitted(pixels, (height, width), image.size)


def decode_mask(file: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> np.ndarray:
    """Decodes a PNG whose pixels are numbers of classes: grey of 8 bits, or indices of a palette of any colours.

    Args:
        file: Content of the file.
        max_pixels: See `decode`.

    Returns:
        uint8 [H, W].

    Raises:
        ImageError: The file is damaged, is no PNG, or its pixels are not such numbers.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new('L', (3, 2), 7).save(file, 'PNG')
        >>> decode_mask(file.getvalue()).tolist()
        [[7, 7, 7], [7, 7, 7]]
    """
    if not file.startswith(_PNG):
        raise ImageError('not a PNG')
    with _image_errors():
        # A PNG that is opened has its whole header.
        picture = _open(file, max_pixels)
        kind = tuple(file[_PNG_KIND])
        if kind != (8, _PNG_GREY) and kind[1:] != (_PNG_PALETTE,):
            raise ImageError(f'{_PNG_COLORS.get(kind[-1], "unknown")} of {kind[0]} bits, but not one number a pixel')
        picture.load()
        return np.asarray(picture)


def size_of(file: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> tuple[int, int]:
    """Height and width of an image in pixels, from its header alone.

    Args:
        file: Content of the file.
        max_pixels: See `decode`.

    Raises:
        ImageError: The header is damaged, is of another format, or says more pixels.
    """
    with _image_errors():
        width, height = _open(file, max_pixels).size
        return height, width


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
    _check_pixels(*picture.size, max_pixels)
    return picture


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(f'{width} x {height} pixels, more than data.max_image_pixels={max_pixels}')
    if not width * height:
        raise ImageError('no pixels')


def _three_channels(picture: Image.Image) -> np.ndarray:
    """The pixels of a loaded picture, uint8 [H, W, 3]."""
    if picture.mode.startswith('I'):
        # Pillow's conversion to RGB would clip 16 bits.
        high_bytes = (np.asarray(picture).astype(np.int64) >> 8).astype(np.uint8)
        return np.repeat(high_bytes[..., None], 3, axis=-1)
    # Pillow warns about a transparent colour, which is dropped here.
    picture.info.pop('transparency', None)
    return np.asarray(picture if picture.mode == 'RGB' else picture.convert('RGB'))
