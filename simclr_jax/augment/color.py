"""Colour on the devices: SimCLR's jitter, with a different order for each image, and greyscale."""

import jax
import jax.numpy as jnp

# A colour with hue h, value v and chroma c has the channels v - c * clip(min(t, 4 - t), 0, 1) with t = (n + 6 h) mod 6.
# These are the n of red, green and blue.
_HUE_OFFSETS = (5.0, 3.0, 1.0)

# Red, green and blue, each [B, H * W].
Planes = tuple[jax.Array, ...]


def jitter(
    images: jax.Array,
    order: jax.Array,
    brightness: jax.Array,
    contrast: jax.Array,
    saturation: jax.Array,
    hue: jax.Array,
    brightness_mode: str = 'multiply',
) -> jax.Array:
    """Applies four colour operations in each image's own order, clipped to [0, 1] after each (SimCLR, appendix A).

    Brightness and contrast each scale and shift a channel. Saturation and hue both keep the value (the largest
    channel), and inside [0, 1] they commute. So every order has the form colour, scale, colour, scale, colour. Each
    image takes part in the steps of its own order.

    This costs two sums over the pixels (for the contrast) and three turns of the hue. Computing all four operations at
    each of the four places would cost four and four.

    Args:
        images: Images, float32 [B, H, W, 3], in [0, 1] or a little beyond.
        order: Permutations of brightness (0), contrast (1), saturation (2) and hue (3), int32 [B, 4].
        brightness: Factor of each image, [B], or offset where the mode is 'add'.
        contrast: Factor of the deviation from each channel's mean, [B].
        saturation: Factor of the saturation, [B]. The product is clipped to [0, 1].
        hue: Shift in turns of the colour circle, [B].
        brightness_mode: 'multiply' or 'add'.

    Returns:
        float32 [B, H, W, 3] in [0, 1].
    """
    brightness, contrast, saturation, hue = (
        values.astype(jnp.float32)[:, None] for values in (brightness, contrast, saturation, hue)
    )
    # Places of the operations in the order, [B, 1] each.
    brightness_at, contrast_at, saturation_at, hue_at = jnp.argsort(order, axis=1).T[:, :, None]
    is_contrast_first = contrast_at < brightness_at
    saturation_step = _count_before(saturation_at, brightness_at, contrast_at)
    hue_step = _count_before(hue_at, brightness_at, contrast_at)

    def recolor(planes: Planes, step: int) -> Planes:
        factor, shift = jnp.where(saturation_step == step, saturation, 1.0), jnp.where(hue_step == step, hue, 0.0)
        return _clip(_change_color(planes, factor, shift))

    def rescale(planes: Planes, is_contrast: jax.Array) -> Planes:
        return _clip(_change_scale(planes, is_contrast, brightness, contrast, brightness_mode))

    # Each channel has its pixels in one row. Compiled for TPUs, 224-pixel images take a third less time than as [H, W].
    planes = tuple(images[..., channel].reshape(len(images), -1) for channel in range(3))
    planes = _first_colors(planes, saturation, hue, saturation_step == 0, hue_step == 0, saturation_at < hue_at)
    planes = recolor(rescale(planes, is_contrast_first), 1)
    planes = recolor(rescale(planes, ~is_contrast_first), 2)
    return jnp.stack(planes, axis=-1).reshape(images.shape)


def _count_before(place: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    return (first < place).astype(jnp.int32) + (second < place).astype(jnp.int32)


def _first_colors(
    planes: Planes,
    saturation: jax.Array,
    hue: jax.Array,
    is_saturated: jax.Array,
    is_turned: jax.Array,
    is_saturation_first: jax.Array,
) -> Planes:
    """Saturation and hue before the scales. Beyond [0, 1] the two do not commute, so their order matters here."""
    saturated = _clip(_change_saturation(planes, saturation))
    planes = _select(is_saturated & is_saturation_first, saturated, planes)
    planes = _select(is_turned, _clip(_change_hue(planes, hue)), planes)
    saturated = _clip(_change_saturation(planes, saturation))
    return _select(is_saturated & ~is_saturation_first, saturated, planes)


def _change_scale(
    planes: Planes, is_contrast: jax.Array, brightness: jax.Array, contrast: jax.Array, brightness_mode: str
) -> Planes:
    """Changes the contrast where `is_contrast` holds, the brightness in the other images."""
    factor, offset = (brightness, 0.0) if brightness_mode == 'multiply' else (1.0, brightness)
    scale = jnp.where(is_contrast, contrast, factor)

    def change(plane: jax.Array) -> jax.Array:
        mean = plane.mean(axis=1, keepdims=True)
        return plane * scale + jnp.where(is_contrast, (1.0 - contrast) * mean, offset)

    return tuple(change(plane) for plane in planes)


def _change_saturation(planes: Planes, factor: jax.Array) -> Planes:
    """Multiplies every channel's distance from the value by `factor`, or by the factor that gives saturation 1."""
    value, chroma = _value_and_chroma(planes)
    ratio = _saturated_chroma(value, chroma, factor) / jnp.where(chroma > 0.0, chroma, 1.0)
    return tuple(value - (value - plane) * ratio for plane in planes)


def _change_hue(planes: Planes, shift: jax.Array) -> Planes:
    value, chroma = _value_and_chroma(planes)
    return _from_hue(_sixths(planes, value, chroma) + 6.0 * shift, value, chroma)


def _change_color(planes: Planes, factor: jax.Array, shift: jax.Array) -> Planes:
    """Changes saturation and hue together, for planes in [0, 1]."""
    value, chroma = _value_and_chroma(planes)
    sixths = _sixths(planes, value, chroma) + 6.0 * shift
    return _from_hue(sixths, value, _saturated_chroma(value, chroma, factor))


def _value_and_chroma(planes: Planes) -> tuple[jax.Array, jax.Array]:
    value = jnp.maximum(jnp.maximum(planes[0], planes[1]), planes[2])
    return value, value - jnp.minimum(jnp.minimum(planes[0], planes[1]), planes[2])


def _saturated_chroma(value: jax.Array, chroma: jax.Array, factor: jax.Array) -> jax.Array:
    """Chroma after the saturation, chroma / value, is multiplied and clipped to [0, 1]. Values <= 0 have chroma 0."""
    return jnp.clip(chroma * factor, 0.0, jnp.maximum(value, 0.0))


def _sixths(planes: Planes, value: jax.Array, chroma: jax.Array) -> jax.Array:
    """Hue in sixths of the colour circle, in [-1, 5]."""
    red, green, blue = planes
    is_red, is_green = red == value, green == value
    difference = jnp.where(is_red, green - blue, jnp.where(is_green, blue - red, red - green))
    sector = jnp.where(is_red, 0.0, jnp.where(is_green, 2.0, 4.0))
    return sector + difference / jnp.where(chroma > 0.0, chroma, 1.0)


def _from_hue(sixths: jax.Array, value: jax.Array, chroma: jax.Array) -> Planes:
    def channel(offset: float) -> jax.Array:
        turned = sixths + offset
        turned = turned - 6.0 * jnp.floor(turned / 6.0)
        return value - chroma * jnp.clip(jnp.minimum(turned, 4.0 - turned), 0.0, 1.0)

    return tuple(channel(offset) for offset in _HUE_OFFSETS)


def _clip(planes: Planes) -> Planes:
    return tuple(jnp.clip(plane, 0.0, 1.0) for plane in planes)


def _select(condition: jax.Array, changed: Planes, planes: Planes) -> Planes:
    return tuple(jnp.where(condition, new, old) for new, old in zip(changed, planes, strict=True))


def grayscale(images: jax.Array) -> jax.Array:
    """Luma (ITU-R BT.601) of images [B, H, W, 3], repeated on the three channels."""
    luma = 0.2989 * images[..., 0] + 0.587 * images[..., 1] + 0.114 * images[..., 2]
    return jnp.stack([luma] * 3, axis=-1)
