"""Crops on the devices: random boxes, and resizing as two matrix products per image."""

import jax
import jax.numpy as jnp

from simclr_jax.augment.operations import RandomCrop

# Steps per pixel of the table from which TensorFlow reads Keys' kernel.
_KERNEL_STEPS = 1024

# Three products of bfloat16 on TPUs, or TensorFloat-32 on GPUs. The latter is the less exact one, exact to half a byte
# (tests/augment/test_crop.py). By default, TPUs would round the factors to bfloat16.
_PRECISION = jax.lax.Precision.HIGH


def to_unit_range(images: jax.Array) -> jax.Array:
    """Converts uint8 in 0..255 to float32 in [0, 1]. Other images become float32 with unchanged values."""
    floats = images.astype(jnp.float32)
    return floats / 255.0 if images.dtype == jnp.uint8 else floats


def resize(images: jax.Array, height: int, width: int, method: str = 'bicubic') -> jax.Array:
    """Resizes without antialiasing, as `tf.image.resize` does. Bicubic results may leave [0, 1] a little.

    Args:
        images: Images [B, H, W, 3], uint8 or float.
        height, width: Size of the result, in pixels.
        method: 'bicubic' (Keys' a = -0.5) or 'bilinear'.

    Returns:
        float32 [B, height, width, 3].
    """
    count, old_height, old_width, _ = images.shape
    if (old_height, old_width) == (height, width):
        return to_unit_range(images)
    origin = jnp.zeros([count], jnp.int32)
    rows = _resize_weights(origin, jnp.full_like(origin, old_height), old_height, height, method)
    columns = _resize_weights(origin, jnp.full_like(origin, old_width), old_width, width, method)
    return separable(to_unit_range(images), rows, columns)


def crop_and_resize(images: jax.Array, boxes: jax.Array, size: int) -> jax.Array:
    """Cuts boxes out of each image and resizes them (bicubic), as two matrix products per box.

    Args:
        images: Images [B, H, W, 3], uint8 or float.
        boxes: Boxes (offset_y, offset_x, height, width) within the images, in pixels, int32 or float32 [B * V, 4]. The
            V boxes of an image lie next to each other.
        size: Height and width of the result, in pixels.

    Returns:
        float32 [B * V, size, size, 3]. Pixels outside of a box have no influence on its result.
    """
    rows = _resize_weights(boxes[:, 0], boxes[:, 2], images.shape[1], size, 'bicubic')
    columns = _resize_weights(boxes[:, 1], boxes[:, 3], images.shape[2], size, 'bicubic')
    return separable(to_unit_range(images), rows, columns)


def _resize_weights(offset: jax.Array, extent: jax.Array, length: int, size: int, method: str) -> jax.Array:
    """Contribution of each of `length` pixels to each of `size` pixels: float32 [B, size, length], rows sum to 1.

    Pixel centres lie at halves. Taps outside of the window have no weight, the others are scaled to sum to 1. This is
    TensorFlow's ResizeBicubic with half_pixel_centers. For bilinear it equals repeating the border.
    """
    offset, extent = offset.astype(jnp.float32), extent.astype(jnp.float32)
    scale = extent / size
    location = (jnp.arange(size, dtype=jnp.float32) + 0.5) * scale[:, None] - 0.5
    if method == 'bicubic':
        whole = jnp.floor(location)
        location = whole + jnp.round((location - whole) * _KERNEL_STEPS) / _KERNEL_STEPS
    pixel = jnp.arange(length, dtype=jnp.float32) - offset[:, None]
    distance = jnp.abs(pixel[:, None, :] - location[:, :, None])
    kernel = _keys_kernel(distance) if method == 'bicubic' else jnp.maximum(1.0 - distance, 0.0)
    # A window that begins or ends within a pixel has all of it.
    is_inside = (pixel > -1.0) & (pixel < extent[:, None])
    weights = jnp.where(is_inside[:, None, :], kernel, 0.0)
    return weights / weights.sum(axis=2, keepdims=True)


def _keys_kernel(distance: jax.Array) -> jax.Array:
    """Keys' cubic convolution kernel, a = -0.5 (IEEE Transactions on ASSP 29, 1981), of distances >= 0."""
    near = (1.5 * distance - 2.5) * distance * distance + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return jnp.where(distance < 1.0, near, jnp.where(distance < 2.0, far, 0.0))


def separable(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Applies rows [B * V, Y, H] and columns [B * V, X, W] to images [B, H, W, 3], giving [B * V, Y, X, 3]."""
    count, height, width, channels = images.shape
    # The rows of all results of an image are one product, so that no image is repeated.
    images = jnp.einsum('byh,bhwc->bywc', rows.reshape(count, -1, height), images, precision=_PRECISION)
    images = images.reshape(*rows.shape[:2], width, channels)
    return jnp.einsum('bxw,bywc->byxc', columns, images, precision=_PRECISION)


def random_crop(images: jax.Array, sizes: jax.Array | None, keys: jax.Array, crop: RandomCrop, size: int) -> jax.Array:
    """Crops and resizes each image at random, with boxes from `sample_crop_boxes`.

    Args:
        images: Images [B, H, W, 3], uint8 or float.
        sizes: Sizes of images on a canvas, float32 [B, 4], see `whole_boxes`. None for images that are not on one.
        keys: Keys [B * V], one per result. Those of an image lie next to each other.
        crop: Ranges of area and aspect.
        size: Height and width of the result, in pixels.

    Returns:
        float32 [B * V, size, size, 3].
    """
    if sizes is None:
        return crop_and_resize(images, sample_crop_boxes(keys, images.shape[1], images.shape[2], crop), size)
    sizes = jnp.repeat(sizes, len(keys) // len(images), axis=0)
    on_canvas, in_file = sizes[:, :2], sizes[:, 2:]
    boxes = sample_crop_boxes(keys, in_file[:, 0], in_file[:, 1], crop).astype(jnp.float32)
    offset, extent = (part * on_canvas / in_file for part in jnp.split(boxes, 2, axis=1))
    # Rounding must not let a box reach beyond the image.
    extent = jnp.minimum(extent, on_canvas - offset)
    return crop_and_resize(images, jnp.concatenate([offset, extent], axis=1), size)


def whole_boxes(sizes: jax.Array) -> jax.Array:
    """The boxes that hold the whole of images on a canvas.

    Args:
        sizes: float32 [B, 4]: height and width on the canvas, whose upper left corner the image fills, then height and
            width in the file.

    Returns:
        float32 [B, 4]: offset_y, offset_x, height, width.
    """
    return jnp.pad(sizes[:, :2], [(0, 0), (2, 0)])


def sample_crop_boxes(keys: jax.Array, height: int | jax.Array, width: int | jax.Array, crop: RandomCrop) -> jax.Array:
    """Draws a random crop for each image: TensorFlow's sample_distorted_bounding_box, all attempts at once.

    An attempt draws the aspect, then the height, uniformly. The width follows from the two. The first attempt that fits
    is taken. All `crop.attempts` are drawn, two numbers each, so that the distribution is exact for any parameters.

    Args:
        keys: Keys [B], one per image.
        height, width: Size of the images, in pixels, one for all or [B].
        crop: Ranges of area and aspect.

    Returns:
        int32 [B, 4]: offset_y, offset_x, height, width. The whole image where no attempt fits.
    """
    draws = uniform(keys, 2 * crop.attempts + 2)
    aspect_draws, height_draws, place_draws = jnp.split(draws, [crop.attempts, 2 * crop.attempts], axis=1)
    height, width = (jnp.broadcast_to(jnp.asarray(side, jnp.float32), keys.shape) for side in (height, width))
    box_height, box_width, fits = _box_sizes(aspect_draws, height_draws, height[:, None], width[:, None], crop)
    is_chosen = fits & (jnp.cumsum(fits, axis=1, dtype=jnp.int32) == 1)

    def first(sizes: jax.Array, otherwise: jax.Array) -> jax.Array:
        return jnp.where(fits.any(axis=1), jnp.where(is_chosen, sizes, 0.0).sum(axis=1), otherwise)

    extent = jnp.stack([first(box_height, height), first(box_width, width)], axis=1)
    # TensorFlow never draws the last offset.
    room = jnp.stack([height, width], axis=1) - extent
    offset = jnp.floor(place_draws * room)
    return jnp.concatenate([offset, extent], axis=1).astype(jnp.int32)


def _box_sizes(
    aspect_draws: jax.Array, height_draws: jax.Array, image_height: jax.Array, image_width: jax.Array, crop: RandomCrop
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Heights and widths of boxes from uniform draws, as whole numbers in float32, and whether each box fits."""
    aspect = between(*crop.aspect, aspect_draws)
    image_area = image_height * image_width
    low_area, high_area = (share * image_area for share in crop.area)
    lowest, highest = jnp.round(jnp.sqrt(low_area / aspect)), jnp.round(jnp.sqrt(high_area / aspect))
    # The largest height whose rounded width is not too wide.
    narrow = jnp.floor((image_width + 0.5) / aspect)
    narrow = jnp.where(jnp.round(narrow * aspect) > image_width, narrow - 1.0, narrow)
    highest = jnp.where(jnp.round(highest * aspect) > image_width, narrow, highest)
    highest = jnp.minimum(highest, image_height)
    lowest = jnp.minimum(lowest, highest)
    height = lowest + jnp.floor(height_draws * (highest - lowest + 1.0))

    def area(height: jax.Array) -> jax.Array:
        return height * jnp.round(height * aspect)

    # One row more or less corrects for the rounding.
    height = jnp.where(area(height) < low_area, height + 1.0, height)
    height = jnp.where(area(height) > high_area, height - 1.0, height)
    width = jnp.round(height * aspect)
    fits = (area(height) >= low_area) & (area(height) <= high_area)
    fits &= (width <= image_width) & (height <= image_height) & (width > 0.0) & (height > 0.0)
    return height, width, fits & (area(height) / image_area >= crop.min_object_covered)


def between(low: float, high: float, draw: jax.Array) -> jax.Array:
    """Maps a draw from [0, 1) to [low, high)."""
    return low + (high - low) * draw


def uniform(keys: jax.Array, count: int) -> jax.Array:
    """Uniform draws in [0, 1), float32 [B, count]. Each row follows from its own key."""
    return jax.vmap(lambda key: jax.random.uniform(key, [count], jnp.float32))(keys)
