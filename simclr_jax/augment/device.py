"""The augmentation policy on the devices: functions of whole batches, in JAX.

Operations and distributions are those of the host (`simclr_jax.augment.host`), the random numbers are others. Every
image has its own parameters, and no loop or branch depends on data. So a batch that is sharded along its images needs
no communication, and all images cost the same. Images are [B, H, W, 3] with values in [0, 1], parameters are [B].
"""

import jax
import jax.numpy as jnp

from simclr_jax.augment.color import grayscale, jitter
from simclr_jax.augment.crop import (
    between,
    crop_and_resize,
    random_crop,
    resize,
    separable,
    to_unit_range,
    uniform,
    whole_boxes,
)
from simclr_jax.augment.operations import (
    JITTER_ORDERS,
    Blur,
    Change,
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
from simclr_jax.augment.policy import Policy

# Number folded into the key of the noise. Smaller numbers are the counters of the uniform draws.
_NOISE = 6


def blur(images: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
    """Separable Gaussian blur, as two matrix products per image. Pixels outside of the image are zero.

    Args:
        images: Images, float32 [B, H, W, 3].
        sigma: Standard deviation of each image's kernel, [B], in pixels, > 0.
        radius: Taps to each side of the centre, (H // 10) // 2 in SimCLR.

    Returns:
        float32 [B, H, W, 3].
    """

    def gauss(distance: jax.Array) -> jax.Array:
        return jnp.exp(-(distance**2) / (2.0 * sigma[:, None, None] ** 2))

    total = gauss(jnp.arange(-radius, radius + 1, dtype=jnp.float32)).sum(axis=2, keepdims=True)

    def weights(length: int) -> jax.Array:
        place = jnp.arange(length, dtype=jnp.float32)
        distance = jnp.abs(place[:, None] - place)
        return jnp.where(distance <= radius, gauss(distance), 0.0) / total

    return separable(images, weights(images.shape[1]), weights(images.shape[2]))


def cutout(images: jax.Array, center: jax.Array, side: float, fill: float) -> jax.Array:
    """Fills a square of each image.

    Args:
        images: Images, float32 [B, H, W, 3].
        center: Centres (y, x) of the squares, float32 [B, 2], as shares of height and width, in [0, 1].
        side: The square's side as a share of the image's shorter side.
        fill: Value inside the square.

    Returns:
        float32 [B, H, W, 3].
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
        images: Square images, float32 [B, S, S, 3].
        quarter_turns: Quarter turns of each image, int32 [B], 0 to 3.

    Returns:
        float32 [B, S, S, 3].

    Raises:
        ValueError: The images are not square, so that the rotated ones would have another shape.
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
    """Magnitude of each channel's Sobel gradient, divided by 4: a step from 0 to 1 gives 1. Borders are mirrored.

    Args:
        images: Images, float32 [B, H, W, 3].

    Returns:
        float32 [B, H, W, 3].
    """
    padded = jnp.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode='reflect')
    rise = padded[:, 2:] - padded[:, :-2]
    vertical = rise[:, :, :-2] + 2.0 * rise[:, :, 1:-1] + rise[:, :, 2:]
    rise = padded[:, :, 2:] - padded[:, :, :-2]
    horizontal = rise[:, :-2] + 2.0 * rise[:, 1:-1] + rise[:, 2:]
    return jnp.sqrt(vertical**2 + horizontal**2) / 4.0


def augment(images: jax.Array, keys: jax.Array, policy: Policy, sizes: jax.Array | None = None) -> jax.Array:
    """Makes the views of images. Under `jax.jit` the policy is a constant.

    An operation's random numbers depend on its image's key, its branch, its class and the number of operations of its
    class before it in its branch. Neither other images nor other operations change them.

    Args:
        images: Images [B, H, W, 3], uint8 or float in [0, 1]. For the second part of `policy.split()`: views
            [B, V, H, W, 3], each of which continues in its own branch.
        keys: Typed keys [B] (threefry, JAX's default), one per image. The same key gives the same views.
        policy: Operations, applied in the order in which they stand.
        sizes: For images on canvases of one size: float32 [B, 4], see `crop.whole_boxes`. The random boxes are those of
            the images in their files. Every view must begin with its crop, or have no operations.

    Returns:
        float32 [B, V, size, size, 3] in [0, 1].

    Raises:
        ValueError: The shapes do not agree with each other or with the policy.
    """
    _check_shapes(images, keys, policy)
    if sizes is not None and not policy.begins_with_crops:
        raise ValueError(f'{policy}: an operation before the first crop would change the canvas around the image')
    if policy.shared:
        images = _apply_all(images, policy.shared, (), _fold_in(keys, 0), policy.size, sizes)
        sizes = None
    applied = policy.applied or ((),) * len(policy.views)
    branches = list(zip(applied, policy.views, strict=True))
    views = {}
    # Views with the same operations are made together, as one larger batch.
    for before, operations in dict.fromkeys(branches):
        alike = [number for number, branch in enumerate(branches) if branch == (before, operations)]
        view_keys = jnp.stack([_fold_in(keys, 1 + number) for number in alike], axis=1).reshape(-1)
        made = to_unit_range(_make_views(images, sizes, operations, before, view_keys, alike, policy.size))
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
            f'images {images.shape}: must be {views} views, after all shared operations; policy.split() makes the parts'
        )
    if images.ndim == 4 and policy.applied:
        raise ValueError(f'images {images.shape}: the second part of a policy takes [B, {views}, H, W, 3]')


def _make_views(
    images: jax.Array,
    sizes: jax.Array | None,
    operations: tuple[Operation, ...],
    before: tuple[Operation, ...],
    keys: jax.Array,
    numbers: list[int],
    size: int,
) -> jax.Array:
    """Views with the same operations, [B * len(numbers), size, size, 3]. Views of one image lie next to each other."""
    begins_with_crop = bool(operations) and isinstance(operations[0], RandomCrop)
    if images.ndim == 5:
        images = jnp.stack([images[:, number] for number in numbers], axis=1).reshape(-1, *images.shape[2:])
    elif sizes is not None and not begins_with_crop:
        images = crop_and_resize(images, jnp.repeat(whole_boxes(sizes), len(numbers), axis=0), size)
    elif not begins_with_crop:
        images = jnp.repeat(images, len(numbers), axis=0)
    if not any(isinstance(operation, RandomCrop) for operation in operations):
        images = resize(images, size, size)
    return _apply_all(images, operations, before, keys, size, sizes)


def _apply_all(
    images: jax.Array,
    operations: tuple[Operation, ...],
    before: tuple[Operation, ...],
    keys: jax.Array,
    size: int,
    sizes: jax.Array | None,
) -> jax.Array:
    """Applies the operations of a branch.

    Args:
        images: Images [B, H, W, 3].
        operations: Operations to apply. A crop that comes first makes several views of an image if there are more keys.
        before: Operations of the branch that were applied earlier.
        keys: Keys of the branch, one per image or view.
        size: Height and width after a crop, in pixels.
        sizes: Sizes of images on a canvas, which the first operation crops. None for images that are not on one.
    """
    done = list(before)
    for operation in operations:
        kind = type(operation)
        repetition = sum(isinstance(other, kind) for other in done)
        operation_keys = _fold_in(keys, operation_number(kind, repetition))
        if isinstance(operation, RandomCrop):
            images, sizes = random_crop(images, sizes, operation_keys, operation, size), None
        else:
            images = _apply(images, operation, operation_keys)
        done.append(operation)
    return images


def _apply(images: jax.Array, operation: Change, keys: jax.Array) -> jax.Array:
    images = to_unit_range(images)
    draws = uniform(keys, operation.uniforms).T
    changed = _change(images, operation, draws[1:], keys)
    if operation.p == 1.0:
        return changed
    return jnp.where((draws[0] < operation.p)[:, None, None, None], changed, images)


def _change(images: jax.Array, operation: Change, draws: jax.Array, keys: jax.Array) -> jax.Array:
    """Applies one operation to all images. Its parameters are made from `draws` [uniforms - 1, B] in [0, 1)."""
    match operation:
        case Flip():
            return images[:, :, ::-1]
        case ColorJitter():
            return jitter(images, *_jitter_parameters(operation, draws), brightness_mode=operation.brightness_mode)
        case ColorDrop():
            return grayscale(images)
        case Blur():
            # A bicubic crop may leave [0, 1]. The reference clips before it blurs.
            images = jnp.clip(images, 0.0, 1.0)
            return blur(images, between(*operation.sigma, draws[0]), (images.shape[1] // 10) // 2)
        case Cutout():
            return cutout(images, draws.T, operation.side, operation.fill)
        case Rotate():
            return rotate(images, (4.0 * draws[0]).astype(jnp.int32))
        case Noise():
            # The key of the uniforms would tie the noise to its own strength.
            noise_keys = _fold_in(keys, _NOISE)
            normal = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], jnp.float32))(noise_keys)
            return images + between(*operation.std, draws[0])[:, None, None, None] * normal
        case Sobel():
            return sobel(images)


def _jitter_parameters(operation: ColorJitter, draws: jax.Array) -> tuple[jax.Array, ...]:
    order = jnp.array(JITTER_ORDERS, jnp.int32)[(len(JITTER_ORDERS) * draws[0]).astype(jnp.int32)]
    return order, *(between(*bounds, draw) for bounds, draw in zip(operation.ranges, draws[1:], strict=True))


def _fold_in(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
