"""The view for evaluation in NumPy: central crop and bicubic resize of whole images. No TensorFlow."""

import functools

import numpy as np

from simclr_jax.augment.policy import CENTER_CROP_PROPORTION, SMALL_IMAGE_SIZE

# Steps per pixel of the table from which TensorFlow reads Keys' kernel.
_KERNEL_STEPS = np.float32(1024)


def center_crop(images: np.ndarray, size: int, kept: float = CENTER_CROP_PROPORTION) -> np.ndarray:
    """Central crop and bicubic resize, equal to the reference's up to rounding. Up to 32 pixels there is no crop.

    Args:
        images: One image [H, W, 3] or several of one size [N, H, W, 3], uint8.
        size: Height and width of the result, in pixels.
        kept: Share of the shorter side that the crop keeps, in (0, 1]. SimCLR's linear transfer experiments (B.8) keep
            all of it.

    Returns:
        float32 [size, size, 3] or [N, size, size, 3], in [0, 1].

    Example:
        >>> center_crop(np.full((50, 40, 3), 255, np.uint8), 36).shape
        (36, 36, 3)
    """
    if size > SMALL_IMAGE_SIZE:
        top, left, height, width = center_crop_box(images.shape[-3], images.shape[-2], kept)
        images = images[..., top : top + height, left : left + width, :]
    if images.shape[-3:-1] == (size, size):
        return images / np.float32(255)
    view = _resize(images, size, np.float32(1 / 255))
    return np.clip(view, 0, 1, out=view)


def center_crop_box(height: int, width: int, kept: float = CENTER_CROP_PROPORTION) -> tuple[int, int, int, int]:
    """The central square that keeps a share of the shorter side, as (offset_y, offset_x, height, width).

    Args:
        height, width: Size of the image, in pixels.
        kept: Share of the shorter side, in (0, 1].
    """
    # In float32 and with halves to even, as in the reference, so that the same halves appear.
    side = max(int(np.rint(np.float32(kept) * np.float32(min(height, width)))), 1)
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def _resize(images: np.ndarray, size: int, factor: np.float32) -> np.ndarray:
    """Resizes the rows, then the columns, and multiplies: [..., H, W, 3] -> float32 [..., size, size, 3]."""
    *outer, height, width, channels = images.shape
    lines = images.reshape(*outer, height, width * channels).astype(np.float32)
    places, weights = _taps(height, size)
    lines = np.einsum('...kyx,ky->...yx', lines.take(places, -2, mode='clip'), weights)
    places, weights = _taps(width, size)
    # NumPy takes single numbers faster than pixels of three.
    places = (channels * places[..., None] + np.arange(channels)).reshape(len(places), -1)
    weights = (factor * weights).repeat(channels, axis=-1)
    lines = np.einsum('...kx,kx->...x', lines.take(places, -1, mode='clip'), weights)
    return lines.reshape(*outer, size, size, channels)


@functools.lru_cache(maxsize=256)
def _taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The four old lines of each new line: places, int64 [4, size], and weights, float32 [4, size], with sum 1.

    Pixel centres lie at halves. Taps outside of the image have no weight. This is TensorFlow's ResizeBicubic with
    half_pixel_centers.
    """
    location = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * (np.float32(length) / np.float32(size))
    location -= np.float32(0.5)
    whole = np.floor(location)
    fraction = np.rint((location - whole) * _KERNEL_STEPS) / _KERNEL_STEPS
    steps = np.arange(-1, 3, dtype=np.float32)[:, None]
    places = (whole + steps).astype(np.int64)
    weights = np.where((places >= 0) & (places < length), _keys_kernel(np.abs(steps - fraction)), np.float32(0))
    return places.clip(0, length - 1), weights / weights.sum(axis=0)


def _keys_kernel(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel, a = -0.5 (IEEE Transactions on ASSP 29, 1981), of distances in [0, 2]."""
    near = (1.5 * distance - 2.5) * distance * distance + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return np.where(distance < 1, near, far).astype(np.float32)
