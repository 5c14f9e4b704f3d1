"""Compares depthwise convolutions as sums of shifted products with XLA's own, on the CPUs of this machine.

python benchmarks/depthwise.py [--repeats=7]

Prints one JSON line for each shape: median milliseconds of the convolution and of its gradients for 16 images, and the
ratios of XLA's / ours.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simclr_jax.ops import depthwise

# (side, channels, kernel size) of blocks of EfficientNet-B0.
SHAPES = (32, 144, 3), (16, 240, 5), (8, 480, 3)


def main():
    """Measures each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=7)
    repeats = parser.parse_args().repeats
    for shape in SHAPES:
        print(json.dumps(measured(*shape, repeats)))


def measured(side, channels, size, repeats):
    """Milliseconds and ratios for one shape."""
    x, kernel = jnp.ones((16, side, side, channels)), jnp.ones((size, size, 1, channels))
    padding = ((size // 2, size // 2),) * 2

    def xla(x, kernel):
        layout = ('NHWC', 'HWIO', 'NHWC')
        return lax.conv_general_dilated(
            x, kernel, (1, 1), padding, dimension_numbers=layout, feature_group_count=channels
        )

    def shifted(x, kernel):
        return depthwise.convolve(1, padding, 1, x, kernel)

    figures = {'side': side, 'channels': channels, 'kernel': size}
    for name, function in (('xla', xla), ('shifted', shifted)):
        gradient = jax.grad(lambda x, kernel, function=function: (function(x, kernel) ** 2).sum(), argnums=(0, 1))
        figures[f'{name}_ms'] = milliseconds(jax.jit(function), (x, kernel), repeats)
        figures[f'{name}_gradient_ms'] = milliseconds(jax.jit(gradient), (x, kernel), repeats)
    for kind in ('ms', 'gradient_ms'):
        figures[f'xla_over_shifted_{kind}'] = round(figures[f'xla_{kind}'] / figures[f'shifted_{kind}'], 1)
    return figures


def milliseconds(function, arguments, repeats):
    """The median of several calls, after one that compiles."""
    seconds = []
    for number in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        if number:
            seconds.append(time.perf_counter() - start)
    return round(1000 * float(np.median(seconds)), 2)


if __name__ == '__main__':
    main()
