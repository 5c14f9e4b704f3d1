"""Average pooling of feature maps to about the same number of values at each depth, for classifiers of the stages."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.ops.precision import at_least_float32

# Most values of a pooled feature map, as in the benchmark of Goyal et al., arXiv 1905.01235.
MAX_VALUES = 9216
# The benchmark's pooling for ResNet-50 at 224 pixels: {(side, channels): (window, stride, padding)}.
_RESNET50_WINDOWS = {
    (112, 64): (10, 10, 4),
    (56, 256): (16, 8, 0),
    (28, 512): (13, 5, 0),
    (14, 1024): (8, 3, 0),
    (7, 2048): (6, 1, 0),
}


def pool_to(x: jax.Array, max_values: int = MAX_VALUES) -> jax.Array:
    """Averages a square feature map over windows, so that at most `max_values` values per image remain.

    The result has g = floor(sqrt(max_values / C)) rows and columns, but at least one and at most as many as the map.

    The maps of ResNet-50 at 224 pixels, with 9216 values, are averaged over the benchmark's windows. These overlap.
    The stem's windows reach beyond the image, where zeros count.

    All other maps are cut into windows of ceil(side / g) pixels. The last windows may be narrower. g becomes smaller
    where fewer windows cover the map.

    Args:
        x: Feature maps [N, H, H, C], floats.
        max_values: Upper bound of g * g * C, at least 1. It may be exceeded where g is 1.

    Returns:
        Averages [N, g, g, C], at least float32.

    Raises:
        ValueError: The map is not square, or max_values is below 1.
    """
    if x.ndim != 4 or x.shape[1] != x.shape[2]:
        raise ValueError(f'a feature map of shape {x.shape} is not square, [N, H, H, C]; use square images')
    if max_values < 1:
        raise ValueError(f'max_values={max_values} must be at least 1; {MAX_VALUES} is usual')
    x = at_least_float32(x)
    side, channels = x.shape[2:]
    if max_values == MAX_VALUES and (side, channels) in _RESNET50_WINDOWS:
        window, stride, padding = _RESNET50_WINDOWS[side, channels]
        x, beyond = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0))), 0
    else:
        target = max(1, min(side, math.isqrt(max_values // channels)))
        window = stride = math.ceil(side / target)
        beyond = -side % window
    # Pixels beyond the image do not count. The benchmark's zeros do: they have become part of x.
    padding: Any = [(0, beyond)] * 2
    return nn.avg_pool(x, (window, window), (stride, stride), padding, count_include_pad=False)
