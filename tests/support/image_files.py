"""Image files of every format and mode, made by Pillow or by hand, with the pixels that they stand for."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

RANDOM = np.random.default_rng(0)
COLOR = RANDOM.integers(0, 256, (10, 12, 3), dtype=np.uint8)
GREY = COLOR[..., 0]
ALPHA = np.dstack([COLOR, RANDOM.integers(1, 256, (10, 12), dtype=np.uint8)])
GREY_IN_COLOR = np.stack([GREY] * 3, axis=-1)
PALETTE = Image.fromarray(COLOR).quantize(16)
PALETTE_IN_COLOR = np.asarray(PALETTE.convert('RGB'))
BITS = Image.fromarray(GREY).convert('1')
BITS_IN_COLOR = np.asarray(BITS.convert('RGB'))
DEEP = RANDOM.integers(0, 2**16, (10, 12, 4)).astype('>u2')
TURNED = Image.Exif()
TURNED[0x0112] = 6
ANIMATION = {'save_all': True, 'append_images': [Image.fromarray(COLOR[::-1].copy())]}


def encode(image, kind='PNG', **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def png(height, width, depth, color_type, rows):
    """A PNG made by hand, for the modes that Pillow does not write."""

    def chunk(name, content):
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

    header = struct.pack('>IIBBBBB', width, height, depth, color_type, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def deep_png(color_type, channels):
    """A PNG of 16 bits per channel, and its high bytes."""
    pixels = DEEP[..., :channels]
    rows = b''.join(b'\0' + row.tobytes() for row in pixels)
    color = (pixels >> 8).astype(np.uint8)
    return png(10, 12, 16, color_type, rows), color[..., :3] if channels > 2 else np.stack([color[..., 0]] * 3, axis=-1)


def png_of_size(height, width, color_type=2):
    """A PNG of a few bytes whose header says any size."""
    return png(height, width, 8, color_type, b'\0')


# Name: (file, pixels). None: lossy.
_KINDS = {
    'png': (encode(COLOR), COLOR),
    'grey png': (encode(GREY), GREY_IN_COLOR),
    'png with alpha': (encode(ALPHA), COLOR),
    'grey png with alpha': (encode(Image.fromarray(ALPHA[..., 2:], 'LA')), np.stack([COLOR[..., 2]] * 3, axis=-1)),
    '1 bit png': (encode(BITS), BITS_IN_COLOR),
    'palette png': (encode(PALETTE), PALETTE_IN_COLOR),
    'palette png, one colour transparent': (encode(PALETTE, transparency=3), PALETTE_IN_COLOR),
    'palette png, alpha per colour': (encode(PALETTE, transparency=bytes(range(16))), PALETTE_IN_COLOR),
    'grey png, one colour transparent': (encode(GREY, transparency=int(GREY[0, 0])), GREY_IN_COLOR),
    'png, one colour transparent': (encode(COLOR, transparency=tuple(map(int, COLOR[0, 0]))), COLOR),
    '16 bit grey png': deep_png(0, 1),
    '16 bit png': deep_png(2, 3),
    '16 bit grey png with alpha': deep_png(4, 2),
    '16 bit png with alpha': deep_png(6, 4),
    'animated png': (encode(COLOR, **ANIMATION), COLOR),
    'bmp': (encode(COLOR, 'BMP'), COLOR),
    'grey bmp': (encode(GREY, 'BMP'), GREY_IN_COLOR),
    'palette bmp': (encode(PALETTE, 'BMP'), PALETTE_IN_COLOR),
    '1 bit bmp': (encode(BITS, 'BMP'), BITS_IN_COLOR),
    'bmp with alpha': (encode(ALPHA, 'BMP'), COLOR),
    'gif': (encode(PALETTE, 'GIF'), PALETTE_IN_COLOR),
    'grey gif': (encode(GREY, 'GIF'), GREY_IN_COLOR),
    'gif, one colour transparent': (encode(PALETTE, 'GIF', transparency=3), PALETTE_IN_COLOR),
    'animated gif': (encode(PALETTE, 'GIF', **ANIMATION), PALETTE_IN_COLOR),
    'webp': (encode(COLOR, 'WEBP', lossless=True), COLOR),
    'grey webp': (encode(GREY, 'WEBP', lossless=True), GREY_IN_COLOR),
    'webp with alpha': (encode(ALPHA, 'WEBP', lossless=True), COLOR),
    'animated webp': (encode(COLOR, 'WEBP', lossless=True, **ANIMATION), COLOR),
    'animated webp with alpha': (encode(ALPHA, 'WEBP', lossless=True, **ANIMATION), COLOR),
    'lossy webp': (encode(COLOR, 'WEBP', quality=60), None),
    'lossy webp with alpha': (encode(ALPHA, 'WEBP', quality=60), None),
    'jpeg': (encode(COLOR, 'JPEG'), None),
    'grey jpeg': (encode(GREY, 'JPEG'), None),
    'progressive jpeg': (encode(COLOR, 'JPEG', progressive=True), None),
    'jpeg with full colour': (encode(COLOR, 'JPEG', subsampling=0), None),
    'cmyk jpeg': (encode(Image.fromarray(COLOR).convert('CMYK'), 'JPEG'), None),
    'turned jpeg': (encode(COLOR, 'JPEG', exif=TURNED), None),
}
READABLE = {name: file for name, (file, _) in _KINDS.items()}
PIXELS = {name: pixels for name, (_, pixels) in _KINDS.items() if pixels is not None}
JPEGS = [name for name in READABLE if 'jpeg' in name]
# One file of each format.
FORMATS = {name: READABLE[name] for name in ('jpeg', 'png', 'gif', 'bmp', 'webp')}

_JPEG = encode(RANDOM.integers(0, 256, size=(32, 32, 3), dtype=np.uint8), 'JPEG')
UNREADABLE = {
    'text': b'this is no image, whatever it is called',
    'short text': b'no',
    'empty': b'',
    'truncated PNG': READABLE['png'][: len(READABLE['png']) // 2],
    'header of a PNG': READABLE['png'][:20],
    'JPEG without its second half': _JPEG[: len(_JPEG) // 2],
    'JPEG without its last bytes': _JPEG[:-2],
    'header of a JPEG': b'\xff\xd8\xff',
    'truncated WebP': READABLE['webp'][:100],
    'truncated GIF': READABLE['gif'][:60],
    'truncated BMP': READABLE['bmp'][:100],
    'TIFF': encode(COLOR, 'TIFF'),
}
