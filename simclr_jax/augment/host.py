"""The augmentation policy on the host: TensorFlow functions of one image, with stateless randomness.

Everything random is a function of a seed. The same seed gives the same pixels in any order of the images. Another kind
of CPU changes them by rounding only. Images are [H, W, 3] with values in [0, 1]. Only data pipelines import this
module.
"""

import functools

import tensorflow as tf

from simclr_jax.augment.operations import (
    JITTER_ORDERS,
    Blur,
    ColorDrop,
    ColorJitter,
    Cutout,
    Flip,
    Noise,
    Operation,
    RandomCrop,
    Rotate,
    Sobel,
    operation_number,
)
from simclr_jax.augment.policy import CENTER_CROP_PROPORTION, SMALL_IMAGE_SIZE, Policy

# TensorFlow's type stubs lack it.
_fold_in = tf.random.experimental.stateless_fold_in  # pyright: ignore[reportAttributeAccessIssue]


def to_unit_range(image: tf.Tensor) -> tf.Tensor:
    """Converts uint8 [H, W, 3] in 0..255 to float32 in [0, 1]. A float32 image is returned unchanged."""
    return tf.cast(image, tf.float32) / 255.0 if image.dtype == tf.uint8 else image


def resize(image: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Bicubic resize (Keys' a = -0.5, no antialiasing). Results may leave [0, 1] a little.

    Args:
        image: Image [H, W, 3], uint8 or float32.
        height, width: Size of the result, in pixels.

    Returns:
        float32 [height, width, 3].
    """
    if image.shape[:2] == (height, width):
        return to_unit_range(image)
    resized = tf.image.resize(image, (height, width), 'bicubic')
    return resized / 255.0 if image.dtype == tf.uint8 else resized


def crop_and_resize(image: tf.Tensor, box: tf.Tensor, size: int) -> tf.Tensor:
    """Cuts out `box`, int32 [4] = (offset_y, offset_x, height, width), and resizes it to float32 [size, size, 3]."""
    offset, extent = box[:2], box[2:]
    window = tf.slice(image, tf.pad(offset, [[0, 1]]), tf.pad(extent, [[0, 1]], constant_values=3))
    return tf.ensure_shape(resize(window, size, size), [size, size, 3])


def center_crop_box(
    height: tf.Tensor, width: tf.Tensor, aspect: float = 1.0, kept: float = CENTER_CROP_PROPORTION
) -> tf.Tensor:
    """The central box that keeps a share of the image along the side that limits it.

    Args:
        height, width: Size of the image in pixels, int32 scalars.
        aspect: Width / height of the box.
        kept: Share of the limiting side, in (0, 1].

    Returns:
        int32 [4]: offset_y, offset_x, height, width.
    """
    full_height, full_width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    # Halves round to even. The two constants are multiplied first, as in the reference, so that the same halves appear.
    box_height = tf.cast(tf.round(tf.minimum(kept * full_height, (kept / aspect) * full_width)), tf.int32)
    box_width = tf.cast(tf.round(tf.minimum(kept * full_width, (kept * aspect) * full_height)), tf.int32)
    return tf.stack([(height - box_height + 1) // 2, (width - box_width + 1) // 2, box_height, box_width])


@tf.autograph.experimental.do_not_convert
def center_crop(image: tf.Tensor, size: int, kept: float = CENTER_CROP_PROPORTION) -> tf.Tensor:
    """The view for evaluation: central crop and bicubic resize. Up to a size of 32 pixels there is no crop.

    Args:
        image: Image [H, W, 3], uint8 or float32 in [0, 1].
        size: Height and width of the result, in pixels.
        kept: Share of the shorter side that the crop keeps, in (0, 1]. SimCLR's linear transfer experiments (B.8) keep
            all of it.

    Returns:
        float32 [size, size, 3] in [0, 1].
    """
    if size <= SMALL_IMAGE_SIZE:
        view = resize(image, size, size)
    else:
        shape = tf.shape(image)
        view = crop_and_resize(image, center_crop_box(shape[0], shape[1], kept=kept), size)
    return tf.clip_by_value(view, 0.0, 1.0)


def change_brightness(image: tf.Tensor, amount: tf.Tensor, mode: str) -> tf.Tensor:
    """Multiplies by `amount` (mode 'multiply', SimCLRv2's code) or adds it ('add', SimCLR's)."""
    return image * amount if mode == 'multiply' else image + amount


def _compiled(operation):
    """Compiles an operation on an image into one XLA program: no arrays between its parts, several times as fast.

    Each image size has its own program, compiled in a fraction of a second. Where the size is unknown, the operation
    is not compiled.
    """
    program = tf.function(operation, jit_compile=True, autograph=False)

    @functools.wraps(operation)
    def apply(image: tf.Tensor, *arguments, **options) -> tf.Tensor:
        return (program if image.shape.is_fully_defined() else operation)(image, *arguments, **options)

    return apply


@_compiled
def jitter(
    image: tf.Tensor,
    order: tf.Tensor,
    brightness: tf.Tensor,
    contrast: tf.Tensor,
    saturation: tf.Tensor,
    hue: tf.Tensor,
    brightness_mode: str = 'multiply',
) -> tf.Tensor:
    """Applies four colour operations in the given order, clipped to [0, 1] after each (SimCLR, appendix A).

    Args:
        image: Image, float32 [H, W, 3].
        order: Permutation of brightness (0), contrast (1), saturation (2) and hue (3), int32 [4].
        brightness: Factor, or offset where the mode is 'add'.
        contrast: Factor of the deviation from each channel's mean.
        saturation: Factor of the saturation. The product is clipped to [0, 1].
        hue: Shift in turns of the colour circle.
        brightness_mode: 'multiply' or 'add'.

    Returns:
        float32 [H, W, 3] in [0, 1].
    """

    def change(position, image):
        operations = (
            functools.partial(change_brightness, image, brightness, brightness_mode),
            functools.partial(tf.image.adjust_contrast, image, contrast),
            functools.partial(tf.image.adjust_saturation, image, saturation),
            functools.partial(tf.image.adjust_hue, image, hue),
        )
        return position + 1, tf.clip_by_value(tf.switch_case(order[position], operations), 0.0, 1.0)

    # A loop compiles in a quarter of a second. Unrolled, XLA takes eight seconds.
    start, shapes = (0, image), (tf.TensorShape([]), image.shape)
    return tf.while_loop(lambda position, _: position < 4, change, start, shape_invariants=shapes)[1]


def grayscale(image: tf.Tensor) -> tf.Tensor:
    """Luma (ITU-R BT.601) repeated on the three channels."""
    weights = tf.constant([[0.2989] * 3, [0.587] * 3, [0.114] * 3])
    return tf.reshape(tf.matmul(tf.reshape(image, [-1, 3]), weights), tf.shape(image))


def blur(image: tf.Tensor, sigma: tf.Tensor, radius: int | tf.Tensor) -> tf.Tensor:
    """Separable Gaussian blur. Pixels outside of the image are zero, so that borders darken.

    Args:
        image: Image, float32 [H, W, 3].
        sigma: Standard deviation of the kernel, in pixels, > 0.
        radius: Taps to each side of the centre, (H // 10) // 2 in SimCLR.

    Returns:
        float32 [H, W, 3].
    """
    if image.shape.is_fully_defined() and isinstance(radius, int):
        height, width, _ = image.shape
        taps = _blur_taps(sigma, radius)
        # The padding is outside of the programs. Inside, every tap would test whether it lies on the image.
        rows = tf.pad(tf.reshape(image, [height, -1]), [[radius, radius], [0, 0]])
        columns = tf.pad(_blur_rows(rows, taps), [[0, 0], [3 * radius, 3 * radius]])
        return tf.reshape(_blur_columns(columns, taps), [height, width, 3])
    # A product with a band matrix along each side is six times as fast as TensorFlow's depthwise convolution without
    # oneDNN.
    shape = tf.shape(image)
    height, width = shape[0], shape[1]
    rows = tf.matmul(_blur_band(height, sigma, radius), tf.reshape(image, [height, -1]))
    columns = tf.transpose(tf.reshape(rows, shape), [1, 0, 2])
    blurred = tf.matmul(_blur_band(width, sigma, radius), tf.reshape(columns, [width, -1]))
    blurred = tf.transpose(tf.reshape(blurred, [width, height, 3]), [1, 0, 2])
    blurred.set_shape(image.shape)
    return blurred


def _blur_taps(sigma: tf.Tensor, radius: int | tf.Tensor) -> tf.Tensor:
    """Weights of the kernel, float32 [2 * radius + 1], with sum 1."""
    taps = _gauss(tf.range(-radius, radius + 1), sigma)
    return taps / tf.reduce_sum(taps)


def _gauss(distance: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    return tf.exp(-(tf.cast(distance, tf.float32) ** 2) / (2.0 * sigma**2))


@_compiled
def _blur_rows(padded: tf.Tensor, taps: tf.Tensor) -> tf.Tensor:
    """Blurs along the columns: [H + 2 r, W * 3] and taps [2 r + 1] -> [H, W * 3]."""
    weights, padded_height = tf.unstack(taps), padded.shape[0]
    assert padded_height is not None, '`blur` calls this for static shapes only'
    height = padded_height - len(weights) + 1
    products = (weight * padded[start : start + height] for start, weight in enumerate(weights))
    return sum(products, start=tf.constant(0.0))


@_compiled
def _blur_columns(padded: tf.Tensor, taps: tf.Tensor) -> tf.Tensor:
    """Blurs along the rows: [H, (W + 2 r) * 3] and taps [2 r + 1] -> [H, W * 3]."""
    weights, padded_width = tf.unstack(taps), padded.shape[1]
    assert padded_width is not None, '`blur` calls this for static shapes only'
    width = padded_width - 3 * (len(weights) - 1)
    products = (weight * padded[:, 3 * place : 3 * place + width] for place, weight in enumerate(weights))
    return sum(products, start=tf.constant(0.0))


def _blur_band(length: tf.Tensor, sigma: tf.Tensor, radius: int | tf.Tensor) -> tf.Tensor:
    """Blur as a matrix, float32 [length, length]: each row has the weights of the pixels up to `radius` away."""
    distance = tf.abs(tf.range(length)[:, tf.newaxis] - tf.range(length))
    total = tf.reduce_sum(_gauss(tf.range(-radius, radius + 1), sigma))
    return tf.where(distance <= radius, _gauss(distance, sigma), 0.0) / total


def cutout(image: tf.Tensor, center: tf.Tensor, side: float, fill: float) -> tf.Tensor:
    """Fills a square of the image.

    Args:
        image: Image, float32 [H, W, 3].
        center: Centre (y, x) of the square, float32 [2], as shares of height and width, in [0, 1].
        side: The square's side as a share of the image's shorter side.
        fill: Value inside the square.

    Returns:
        float32 [H, W, 3].
    """
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    half = side * tf.reduce_min(shape) / 2.0
    rows = tf.abs(tf.range(shape[0]) + 0.5 - center[0] * shape[0]) < half
    columns = tf.abs(tf.range(shape[1]) + 0.5 - center[1] * shape[1]) < half
    inside = rows[:, tf.newaxis, tf.newaxis] & columns[tf.newaxis, :, tf.newaxis]
    return tf.where(inside, fill, image)


def rotate(image: tf.Tensor, quarter_turns: tf.Tensor) -> tf.Tensor:
    """Rotates an image counter-clockwise by 0, 1, 2 or 3 quarter turns."""
    rotated = tf.image.rot90(image, quarter_turns)
    if image.shape[0] == image.shape[1]:
        rotated.set_shape(image.shape)
    return rotated


def sobel(image: tf.Tensor) -> tf.Tensor:
    """Magnitude of each channel's Sobel gradient, divided by 4: a step from 0 to 1 gives 1. Borders are mirrored."""
    return tf.norm(tf.image.sobel_edges(image[tf.newaxis])[0], axis=-1) / 4.0


def sample_crop_box(shape: tf.Tensor, seed: tf.Tensor, crop: RandomCrop) -> tf.Tensor:
    """Draws a random crop. It does not need the pixels, so that a decoder can read the window alone.

    Args:
        shape: Height, width and channels of the image, int32 [3].
        seed: Seed of the draw, int [2].
        crop: Ranges of area and aspect.

    Returns:
        int32 [4]: offset_y, offset_x, height, width. The whole image where no attempt fits.
    """
    offset, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=seed,
        min_object_covered=crop.min_object_covered,
        aspect_ratio_range=crop.aspect,
        area_range=crop.area,
        max_attempts=crop.attempts,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([offset[:2], extent[:2]], axis=0)


def operation_seed(seed: tf.Tensor, branch: int, operation: type, repetition: int = 0) -> tf.Tensor:
    """Seed of one operation in one branch. The presence of other operations does not change it.

    Args:
        seed: Seed of the image, int [2].
        branch: 0 for the shared operations, view + 1 for a view's own.
        operation: Class of the operation.
        repetition: Operations of this class that come before it in its branch.
    """
    return _fold_in(_fold_in(seed, branch), operation_number(operation, repetition))


@tf.autograph.experimental.do_not_convert
def augment(image: tf.Tensor, seed: tf.Tensor, policy: Policy, *, as_bytes: bool = False) -> tf.Tensor:
    """Makes the views of one image.

    Args:
        image: Image [H, W, 3], uint8 or float32 in [0, 1].
        seed: Seed of the image, int32 or int64 [2]. The same seed gives the same views.
        policy: Operations, applied in the order in which they stand.
        as_bytes: Whether to round to bytes, a quarter of the size, for devices that continue the augmentation.

    Returns:
        [V, size, size, 3], float32 in [0, 1] or uint8 in 0..255.

    Raises:
        ValueError: The host has no implementation of an operation.
    """
    is_cropped = any(isinstance(operation, RandomCrop) for operation in policy.shared)
    image = _apply_all(image, policy.shared, seed, 0, policy.size)
    views = []
    for branch, operations in enumerate(policy.views, start=1):
        view = image
        if not is_cropped and not any(isinstance(operation, RandomCrop) for operation in operations):
            view = resize(view, policy.size, policy.size)
        view = _apply_all(view, operations, seed, branch, policy.size)
        views.append(tf.ensure_shape(to_unit_range(view), [policy.size, policy.size, 3]))
    return _bytes(*views) if as_bytes else tf.clip_by_value(tf.stack(views), 0.0, 1.0)


@_compiled
def _bytes(*views: tf.Tensor) -> tf.Tensor:
    """Rounds V views, float32 [H, W, 3] in [0, 1] or a little outside, to uint8 [V, H, W, 3]."""
    return tf.stack([tf.cast(tf.round(255.0 * tf.clip_by_value(view, 0.0, 1.0)), tf.uint8) for view in views])


def _apply_all(image, operations: tuple[Operation, ...], seed, branch: int, size: int) -> tf.Tensor:
    for position, operation in enumerate(operations):
        kind = type(operation)
        repetition = sum(isinstance(earlier, kind) for earlier in operations[:position])
        image = _apply(image, operation, operation_seed(seed, branch, kind, repetition), size)
    return image


def _apply(image: tf.Tensor, operation: Operation, seed: tf.Tensor, size: int) -> tf.Tensor:
    if isinstance(operation, RandomCrop):
        return crop_and_resize(image, sample_crop_box(tf.shape(image), seed, operation), size)
    image = to_unit_range(image)
    chance, *draws = tf.unstack(tf.random.stateless_uniform([operation.uniforms], seed))
    change = functools.partial(_change, image, operation, draws, seed)
    if operation.p == 1.0:
        return change()
    return tf.cond(chance < operation.p, change, lambda: image)


def _change(image: tf.Tensor, operation: Operation, draws: list[tf.Tensor], seed: tf.Tensor) -> tf.Tensor:
    """Applies one operation. Its parameters are made from `draws`, independent and uniform in [0, 1)."""
    match operation:
        case Flip():
            return tf.reverse(image, [1])
        case ColorJitter():
            return jitter(image, *_jitter_parameters(operation, draws), brightness_mode=operation.brightness_mode)
        case ColorDrop():
            return grayscale(image)
        case Blur():
            # A bicubic crop may leave [0, 1]. The reference clips before it blurs.
            image = tf.clip_by_value(image, 0.0, 1.0)
            height = image.shape[0] or tf.shape(image)[0]
            return blur(image, _between(*operation.sigma, draws[0]), (height // 10) // 2)
        case Cutout():
            return cutout(image, tf.stack(draws), operation.side, operation.fill)
        case Rotate():
            return rotate(image, tf.cast(4.0 * draws[0], tf.int32))
        case Noise():
            # The seed of the uniforms would tie the noise to its own standard deviation.
            normal = tf.random.stateless_normal(tf.shape(image), _fold_in(seed, 1))
            return image + _between(*operation.std, draws[0]) * normal
        case Sobel():
            return sobel(image)
        case _:
            raise ValueError(
                f'{operation}: only the devices have this operation; choose data.feed=hybrid with the operation after '
                'the last crop, or data.feed=resident'
            )


def _jitter_parameters(operation: ColorJitter, draws: list[tf.Tensor]) -> tuple[tf.Tensor, ...]:
    order = tf.gather(JITTER_ORDERS, tf.cast(len(JITTER_ORDERS) * draws[0], tf.int32))
    return order, *(_between(*bounds, draw) for bounds, draw in zip(operation.ranges, draws[1:], strict=True))


def _between(low: float, high: float, draw: tf.Tensor) -> tf.Tensor:
    return low + (high - low) * draw
