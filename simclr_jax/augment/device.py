"""The augmentation policy on the devices: functions of whole batches, in JAX.

The operations and distributions are the host's (`simclr_jax.augment.host`), the draws their own. Everything is done
image by image with per-image parameters, without loops or branches that depend on data: a batch that is sharded
along its images needs no communication, and all images cost the same. Images are [B, H, W, 3] with values in
[0, 1]; parameters are [B].
"""

import itertools

import jax
import jax.numpy as jnp

from simclr_jax.augment.color import grayscale, jitter
from simclr_jax.augment.policy import (
    CENTER_CROP_PROPORTION,
    OPERATIONS,
    SMALL_IMAGE_SIZE,
    Blur,
    ColorDrop,
    ColorJitter,
    Cutout,
    Flip,
    Noise,
    Operation,
    Policy,
    RandomCrop,
    Rotate,
    Sobel,
)

# All orders of brightness (0), contrast (1), saturation (2) and hue (3).
JITTER_ORDERS = tuple(itertools.permutations(range(4)))

# TensorFlow reads Keys' kernel from a table of this many steps a pixel.
_KERNEL_STEPS = 1024

# A repeated operation draws anew; the stride leaves room for operations that are still to be invented.
_REPETITION_STRIDE = 100

# Uniform draws of an operation besides the crop: whether it is applied, and up to five parameters.
_DRAWS = 6

# Float32 products: accelerators round the factors to fewer bits unless asked.
_PRECISION = jax.lax.Precision.HIGHEST


def to_unit_range(images: jax.Array) -> jax.Array:
    """uint8 in 0..255 becomes float32 in [0, 1]; other images become float32 as they are."""
    floats = images.astype(jnp.float32)
    return floats / 255.0 if images.dtype == jnp.uint8 else floats


def resize(images: jax.Array, height: int, width: int, method: str = 'bicubic') -> jax.Array:
    """Resizes without antialiasing, as `tf.image.resize` does; bicubic results may leave [0, 1] a little.

    Args:
        images: [B, H, W, 3] uint8 or float.
        height, width: of the result, pixels.
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
    return _separable(to_unit_range(images), rows, columns)


def crop_and_resize(images: jax.Array, boxes: jax.Array, size: int) -> jax.Array:
    """Cuts a box out of each image and resizes it (bicubic), as two matrix products an image.

    Args:
        images: [B, H, W, 3] uint8 or float.
        boxes: int32 [B, 4], each (offset_y, offset_x, height, width) within the image.
        size: height and width of the result, pixels.

    Returns:
        float32 [B, size, size, 3]; pixels outside of the box have no influence.
    """
    rows = _resize_weights(boxes[:, 0], boxes[:, 2], images.shape[1], size, 'bicubic')
    columns = _resize_weights(boxes[:, 1], boxes[:, 3], images.shape[2], size, 'bicubic')
    return _separable(to_unit_range(images), rows, columns)


def _resize_weights(offset: jax.Array, extent: jax.Array, length: int, size: int, method: str) -> jax.Array:
    """What each of `length` pixels contributes to each of `size`: float32 [B, size, length], rows sum to 1.

    Pixel centres lie at halves; taps outside of the window have no weight and the others are scaled to sum to 1
    (TensorFlow's ResizeBicubic with half_pixel_centers; for bilinear that is the same as repeating the border).
    """
    scale = extent.astype(jnp.float32) / size
    location = (jnp.arange(size, dtype=jnp.float32) + 0.5) * scale[:, None] - 0.5
    if method == 'bicubic':
        whole = jnp.floor(location)
        location = whole + jnp.round((location - whole) * _KERNEL_STEPS) / _KERNEL_STEPS
    pixel = jnp.arange(length, dtype=jnp.int32) - offset[:, None]
    distance = jnp.abs(pixel.astype(jnp.float32)[:, None, :] - location[:, :, None])
    kernel = _keys_kernel(distance) if method == 'bicubic' else jnp.maximum(1.0 - distance, 0.0)
    is_inside = (pixel >= 0) & (pixel < extent[:, None])
    weights = jnp.where(is_inside[:, None, :], kernel, 0.0)
    return weights / weights.sum(axis=2, keepdims=True)


def _keys_kernel(distance: jax.Array) -> jax.Array:
    """Keys' cubic convolution kernel, a = -0.5 (IEEE Transactions on ASSP 29, 1981), of distances >= 0."""
    near = (1.5 * distance - 2.5) * distance * distance + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return jnp.where(distance < 1.0, near, jnp.where(distance < 2.0, far, 0.0))


def _separable(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """rows [B, Y, H] and columns [B, X, W] applied to images [B, H, W, 3]: [B, Y, X, 3]."""
    images = jnp.einsum('byh,bhwc->bywc', rows, images, precision=_PRECISION)
    return jnp.einsum('bxw,bywc->byxc', columns, images, precision=_PRECISION)


def center_crop(images: jax.Array, size: int, kept: float = CENTER_CROP_PROPORTION) -> jax.Array:
    """The views for evaluation: central crop and bicubic resize; up to 32 pixels no crop, only the resize.

    Args:
        images: [B, H, W, 3] uint8 or float in [0, 1].
        size: height and width of the result, pixels.
        kept: share of the shorter side that the crop keeps; 1 in SimCLR's linear transfer experiments (B.8).

    Returns:
        float32 [B, size, size, 3] in [0, 1].
    """
    if size <= SMALL_IMAGE_SIZE:
        return jnp.clip(resize(images, size, size), 0.0, 1.0)
    count, height, width, _ = images.shape
    side = round(kept * min(height, width))
    box = jnp.array([(height - side + 1) // 2, (width - side + 1) // 2, side, side], jnp.int32)
    return jnp.clip(crop_and_resize(images, jnp.tile(box, [count, 1]), size), 0.0, 1.0)


def blur(images: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
    """Separable Gaussian blur, as two matrix products an image; outside of the image all is zero.

    Args:
        images: float32 [B, H, W, 3].
        sigma: [B], standard deviation, pixels, > 0.
        radius: taps to each side of the centre; (H // 10) // 2 in SimCLR.
    """

    def gauss(distance: jax.Array) -> jax.Array:
        return jnp.exp(-(distance**2) / (2.0 * sigma[:, None, None] ** 2))

    total = gauss(jnp.arange(-radius, radius + 1, dtype=jnp.float32)).sum(axis=2, keepdims=True)

    def weights(length: int) -> jax.Array:
        place = jnp.arange(length, dtype=jnp.float32)
        distance = jnp.abs(place[:, None] - place)
        return jnp.where(distance <= radius, gauss(distance), 0.0) / total

    return _separable(images, weights(images.shape[1]), weights(images.shape[2]))


def cutout(images: jax.Array, center: jax.Array, side: float, fill: float) -> jax.Array:
    """Fills a square of each image.

    Args:
        images: float32 [B, H, W, 3].
        center: float32 [B, 2], the squares' centres (y, x) as shares of height and width, in [0, 1].
        side: the square's side as a share of the shorter side of the image.
        fill: value inside.
    """
    height, width = images.shape[1:3]
    half = side * min(height, width) / 2.0
    rows = jnp.abs(jnp.arange(height, dtype=jnp.float32) + 0.5 - center[:, :1] * height) < half
    columns = jnp.abs(jnp.arange(width, dtype=jnp.float32) + 0.5 - center[:, 1:] * width) < half
    is_inside = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(is_inside, fill, images)


def rotate(images: jax.Array, quarter_turns: jax.Array) -> jax.Array:
    """Rotates each square image counter-clockwise by its own number of quarter turns.

    Args:
        images: float32 [B, S, S, 3].
        quarter_turns: int32 [B], 0 to 3.

    Raises:
        ValueError: the images are not square, so that the turned ones would have another shape.
    """
    if images.shape[1] != images.shape[2]:
        raise ValueError(
            f'images {images.shape}: the devices rotate square images only; let a crop come before the rotation, '
            'or let the host augment (data.feed=host)'
        )
    turns = quarter_turns[:, None, None, None]
    images = jnp.where(turns >= 2, images[:, ::-1, ::-1], images)
    return jnp.where(turns % 2 == 1, images.swapaxes(1, 2)[:, ::-1], images)


def sobel(images: jax.Array) -> jax.Array:
    """Magnitude of each channel's Sobel gradient over 4: a step from 0 to 1 gives 1. Borders are mirrored."""
    padded = jnp.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode='reflect')
    rise = padded[:, 2:] - padded[:, :-2]
    vertical = rise[:, :, :-2] + 2.0 * rise[:, :, 1:-1] + rise[:, :, 2:]
    rise = padded[:, :, 2:] - padded[:, :, :-2]
    horizontal = rise[:, :-2] + 2.0 * rise[:, 1:-1] + rise[:, 2:]
    return jnp.sqrt(vertical**2 + horizontal**2) / 4.0


def sample_crop_boxes(keys: jax.Array, height: int, width: int, crop: RandomCrop) -> jax.Array:
    """Draws a random crop for each image: TensorFlow's sample_distorted_bounding_box, all attempts at once.

    An attempt draws the aspect, then the height, uniformly; the width follows. The first attempt that fits is
    taken. All `crop.attempts` are drawn, two numbers each, so that the distribution is exact for any parameters.

    Args:
        keys: [B], one an image.
        height, width: of the images, pixels.
        crop: ranges of area and aspect.

    Returns:
        int32 [B, 4]: offset_y, offset_x, height, width; the whole image where no attempt fits.
    """
    draws = _uniform(keys, 2 * crop.attempts + 2)
    aspect_draws, height_draws, place_draws = jnp.split(draws, [crop.attempts, 2 * crop.attempts], axis=1)
    box_height, box_width, fits = _box_sizes(aspect_draws, height_draws, height, width, crop)
    is_chosen = fits & (jnp.cumsum(fits, axis=1, dtype=jnp.int32) == 1)

    def first(sizes: jax.Array, otherwise: int) -> jax.Array:
        return jnp.where(fits.any(axis=1), jnp.where(is_chosen, sizes, 0.0).sum(axis=1), otherwise)

    extent = jnp.stack([first(box_height, height), first(box_width, width)], axis=1)
    # TensorFlow never draws the last offset.
    room = jnp.array([height, width], jnp.float32) - extent
    offset = jnp.floor(place_draws * room)
    return jnp.concatenate([offset, extent], axis=1).astype(jnp.int32)


def _box_sizes(
    aspect_draws: jax.Array, height_draws: jax.Array, image_height: int, image_width: int, crop: RandomCrop
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Heights and widths, whole numbers as float32, of boxes from uniform draws, and which of them fit."""
    aspect = _between(*crop.aspect, aspect_draws)
    image_area = float(image_height * image_width)
    low_area, high_area = (jnp.float32(share) * image_area for share in crop.area)
    lowest, highest = jnp.round(jnp.sqrt(low_area / aspect)), jnp.round(jnp.sqrt(high_area / aspect))
    # The highest that is not too wide once rounded.
    narrow = jnp.floor((image_width + 0.5) / aspect)
    narrow = jnp.where(jnp.round(narrow * aspect) > image_width, narrow - 1.0, narrow)
    highest = jnp.where(jnp.round(highest * aspect) > image_width, narrow, highest)
    highest = jnp.minimum(highest, float(image_height))
    lowest = jnp.minimum(lowest, highest)
    height = lowest + jnp.floor(height_draws * (highest - lowest + 1.0))

    def area(height: jax.Array) -> jax.Array:
        return height * jnp.round(height * aspect)

    # One row more or less makes up for the rounding.
    height = jnp.where(area(height) < low_area, height + 1.0, height)
    height = jnp.where(area(height) > high_area, height - 1.0, height)
    width = jnp.round(height * aspect)
    fits = (area(height) >= low_area) & (area(height) <= high_area)
    fits &= (width <= image_width) & (height <= image_height) & (width > 0.0) & (height > 0.0)
    return height, width, fits & (area(height) / image_area >= crop.min_object_covered)


def augment(images: jax.Array, keys: jax.Array, policy: Policy) -> jax.Array:
    """Makes the views of images; under `jax.jit` the policy is a constant.

    An operation's draws depend on its image's key, its branch, its kind and how many of its kind come before it
    in its branch: neither other images nor other operations change them.

    Args:
        images: [B, H, W, 3], or views [B, V, H, W, 3] of which each goes on in its own branch (the second part
            of `policy.split()`); uint8, or float in [0, 1].
        keys: typed keys [B] (threefry, JAX's default), one an image; the same key gives the same views.
        policy: the operations; they are applied in the order in which they stand.

    Returns:
        float32 [B, V, size, size, 3] in [0, 1].

    Raises:
        ValueError: shapes that do not agree with each other or with the policy.
    """
    _check_shapes(images, keys, policy)
    if images.ndim == 4:
        images = _apply_all(images, policy.shared, (), _fold_in(keys, 0), policy.size)
    applied = policy.applied or ((),) * len(policy.views)
    branches = list(zip(applied, policy.views, strict=True))
    views = {}
    # Views with the same operations are made together, as one larger batch.
    for before, operations in dict.fromkeys(branches):
        alike = [number for number, branch in enumerate(branches) if branch == (before, operations)]
        chosen = _rows_of_views(images, alike)
        view_keys = jnp.stack([_fold_in(keys, 1 + number) for number in alike], axis=1).reshape(-1)
        if not any(isinstance(operation, RandomCrop) for operation in operations):
            chosen = resize(chosen, policy.size, policy.size)
        made = to_unit_range(_apply_all(chosen, operations, before, view_keys, policy.size))
        made = made.reshape(len(keys), len(alike), *made.shape[1:])
        views |= {number: made[:, place] for place, number in enumerate(alike)}
    return jnp.clip(jnp.stack([views[number] for number in range(len(branches))], axis=1), 0.0, 1.0)


def _check_shapes(images: jax.Array, keys: jax.Array, policy: Policy) -> None:
    views = len(policy.views)
    if images.ndim not in (4, 5) or images.shape[-1] != 3:
        raise ValueError(f'images {images.shape}: must be [B, H, W, 3], or views [B, {views}, H, W, 3]')
    if keys.shape != images.shape[:1]:
        raise ValueError(f'keys {keys.shape}: must be typed keys, one for each of {images.shape[0]} images')
    if images.ndim == 5 and (images.shape[1] != views or policy.shared):
        raise ValueError(
            f'images {images.shape}: must be {views} views, after all shared operations; policy.split() parts them'
        )
    if images.ndim == 4 and policy.applied:
        raise ValueError(f'images {images.shape}: the second part of a policy takes [B, {views}, H, W, 3]')


def _rows_of_views(images: jax.Array, numbers: list[int]) -> jax.Array:
    """The rows of some views [B * len(numbers), H, W, 3]: an image's next to each other."""
    if images.ndim == 4:
        return jnp.repeat(images, len(numbers), axis=0)
    return jnp.stack([images[:, number] for number in numbers], axis=1).reshape(-1, *images.shape[2:])


def _apply_all(
    images: jax.Array, operations: tuple[Operation, ...], before: tuple[Operation, ...], keys: jax.Array, size: int
) -> jax.Array:
    """Applies a branch's operations; `before` are those applied already, keys [B] the branch's."""
    done = list(before)
    for operation in operations:
        kind = type(operation)
        repetition = sum(isinstance(other, kind) for other in done)
        number = list(OPERATIONS.values()).index(kind) + _REPETITION_STRIDE * repetition
        images = _apply(images, operation, _fold_in(keys, number), size)
        done.append(operation)
    return images


def _apply(images: jax.Array, operation: Operation, keys: jax.Array, size: int) -> jax.Array:
    if isinstance(operation, RandomCrop):
        return crop_and_resize(images, sample_crop_boxes(keys, *images.shape[1:3], operation), size)
    images = to_unit_range(images)
    draws = _uniform(keys, _DRAWS).T
    changed = _change(images, operation, draws[1:], keys)
    if operation.p == 1.0:
        return changed
    return jnp.where((draws[0] < operation.p)[:, None, None, None], changed, images)


def _change(images: jax.Array, operation: Operation, draws: jax.Array, keys: jax.Array) -> jax.Array:
    """One operation whose parameters are made from `draws` [5, B], uniform in [0, 1)."""
    match operation:
        case Flip():
            return images[:, :, ::-1]
        case ColorJitter():
            return jitter(images, *_jitter_parameters(operation, draws), operation.brightness_mode)
        case ColorDrop():
            return grayscale(images)
        case Blur():
            # A bicubic crop may leave [0, 1]; the reference clips before it blurs.
            images = jnp.clip(images, 0.0, 1.0)
            return blur(images, _between(*operation.sigma, draws[0]), (images.shape[1] // 10) // 2)
        case Cutout():
            return cutout(images, draws[:2].T, operation.side, operation.fill)
        case Rotate():
            return rotate(images, (4.0 * draws[0]).astype(jnp.int32))
        case Noise():
            # Folded beyond the draws: the very key of the uniforms would tie the noise to its own strength.
            noise_keys = _fold_in(keys, _DRAWS)
            normal = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], jnp.float32))(noise_keys)
            return images + _between(*operation.std, draws[0])[:, None, None, None] * normal
        case Sobel():
            return sobel(images)


def _jitter_parameters(operation: ColorJitter, draws: jax.Array) -> tuple[jax.Array, ...]:
    order = jnp.array(JITTER_ORDERS, jnp.int32)[(len(JITTER_ORDERS) * draws[0]).astype(jnp.int32)]
    brightness, contrast, saturation, hue = (
        operation.strength * amount
        for amount in (operation.brightness, operation.contrast, operation.saturation, operation.hue)
    )
    if operation.brightness_mode == 'multiply':
        brightness_range = max(0.0, 1.0 - brightness), 1.0 + brightness
    else:
        brightness_range = -brightness, brightness
    return (
        order,
        _between(*brightness_range, draws[1]),
        _between(max(0.0, 1.0 - contrast), 1.0 + contrast, draws[2]),
        _between(max(0.0, 1.0 - saturation), 1.0 + saturation, draws[3]),
        _between(-hue, hue, draws[4]),
    )


def _between(low: float, high: float, draw: jax.Array) -> jax.Array:
    return low + (high - low) * draw


def _fold_in(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _uniform(keys: jax.Array, count: int) -> jax.Array:
    """float32 [B, count] in [0, 1), each key's own."""
    return jax.vmap(lambda key: jax.random.uniform(key, [count], jnp.float32))(keys)
