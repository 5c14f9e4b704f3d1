"""Depthwise convolutions as sums of shifted products, for CPUs.

A depthwise kernel has one value per tap and channel. The result is the sum over the taps of the shifted image times
these values. XLA fuses the sum into one pass over the image. Its own depthwise convolutions took 12 to 34 times as long
on two CPU cores, and their gradients 5 to 23 times (benchmarks/depthwise.py).
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

Padding = tuple[tuple[int, int], tuple[int, int]]


def convolve(stride: int, padding: Padding, dilation: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves each channel of images by itself.

    Args:
        stride: Stride of rows and columns.
        padding: Numbers of rows of zeros (before, after) and of columns of zeros (before, after).
        dilation: Distance in pixels between neighbouring taps of the kernel.
        x: Images [N, H, W, C].
        kernel: Kernel [K, K, 1, C].

    Returns:
        Images [N, H', W', C].
    """
    sides = [
        (side + sum(around) - dilation * (len(kernel) - 1) - 1) // stride + 1
        for side, around in zip(x.shape[1:3], padding, strict=True)
    ]
    taps = _taps(stride, padding, dilation, x, len(kernel), sides)
    weights = kernel.reshape(-1, kernel.shape[-1])
    return functools.reduce(jnp.add, (tap * weight for tap, weight in zip(taps, weights, strict=True)))


def kernel_gradient(
    stride: int, padding: Padding, dilation: int, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> jax.Array:
    """Computes the transpose of `convolve` in the kernel.

    Args:
        stride, padding, dilation: See `convolve`.
        x: Images [N, H, W, C].
        kernel: Kernel [K, K, 1, C]. Only its shape matters.
        dy: Gradient of the result, [N, H', W', C].

    Returns:
        Gradient of the kernel, [K, K, 1, C].
    """
    taps = _taps(stride, padding, dilation, x, len(kernel), dy.shape[1:3])
    return jnp.stack([(tap * dy).sum((0, 1, 2)) for tap in taps]).reshape(kernel.shape)


def _taps(
    stride: int, padding: Padding, dilation: int, x: jax.Array, size: int, sides: Sequence[int]
) -> Iterator[jax.Array]:
    """For each tap, row by row, the values of the image that it meets, [N, H', W', C]."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = sides
    for i, j in itertools.product(range(0, dilation * size, dilation), repeat=2):
        yield x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
