"""Measures seconds and memory of NT-Xent's value and gradient, in blocks and in the plain form, on one device.

python benchmarks/nt_xent.py --images 2048 4096 8192 --repeats 5
python benchmarks/nt_xent.py --images 32768 --without-plain

Each repeat runs both forms in turn. Prints one JSON line per batch size: medians of the seconds over the repeats, and
the median ratio of the plain form / blocks within a repeat. Memory is the compiler's count of temporaries, without the
projections and their gradient. With --without-plain the plain form is compiled for its memory but does not run.
"""

import argparse
import functools
import json
import time

import jax
import numpy as np

from simclr_jax.losses.contrastive import nt_xent


def main():
    """Measures both forms at every batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--images', type=int, nargs='+', default=[2048, 4096, 8192], help='images per batch, two views each'
    )
    parser.add_argument('--dim', type=int, default=128, help='width of the projection')
    parser.add_argument('--block-size', type=int, default=512, help='anchors per block')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--without-plain', action='store_true', help='time only the form in blocks')
    options = parser.parse_args()
    for images in options.images:
        print(json.dumps(compare(images, options)), flush=True)


def compare(images, options):
    """Measures the figures of one batch size."""
    z = random_views(images, options.dim)
    forms = {
        name: compiled(functools.partial(nt_xent, temperature=0.1, block_size=block_size), z)
        for name, block_size in (('plain', None), ('blocks', options.block_size))
    }
    memory = {name: form.memory_analysis().temp_size_in_bytes / 2**20 for name, form in forms.items()}
    if options.without_plain:
        del forms['plain']
    results = {name: jax.block_until_ready(form(z)) for name, form in forms.items()}
    seconds = {name: [] for name in forms}
    for _ in range(options.repeats):
        for name, form in forms.items():
            seconds[name].append(timed(form, z))
    figures = {
        'images': images,
        'dim': options.dim,
        'block_size': options.block_size,
        'device': jax.devices()[0].device_kind,
        'blocks_mib': round(memory['blocks'], 1),
        'plain_mib': round(memory['plain'], 1),
        'plain_over_blocks_memory': round(memory['plain'] / memory['blocks'], 2),
        **{f'{name}_seconds': round(float(np.median(times)), 3) for name, times in seconds.items()},
    }
    if not options.without_plain:
        ratios = [plain / ours for ours, plain in zip(seconds['blocks'], seconds['plain'], strict=True)]
        figures['plain_over_blocks_seconds'] = round(float(np.median(ratios)), 2)
        figures['ratios'] = [round(ratio, 2) for ratio in ratios]
        figures['gradient_difference'] = difference(results['blocks'][1], results['plain'][1])
    return figures


def random_views(images, dim):
    """Makes two similar views [images, 2, dim] of each image."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((images, 1, dim), np.float32)
    return jax.device_put(centres + generator.standard_normal((images, 2, dim), np.float32))


def compiled(loss, z):
    """Compiles value and gradient of a loss for projections of the shape of z."""
    return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(z).compile()


def timed(form, z):
    """Measures the seconds of one call."""
    start = time.perf_counter()
    jax.block_until_ready(form(z))
    return time.perf_counter() - start


def difference(gradient, expected):
    """Computes the largest difference of two entries / the largest entry."""
    gradient, expected = np.asarray(gradient), np.asarray(expected)
    return float(f'{np.abs(gradient - expected).max() / np.abs(expected).max():.1e}')


if __name__ == '__main__':
    main()
