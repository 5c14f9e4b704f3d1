"""Measures images per second of the augmentation on the default device, whole and without the crop.

python benchmarks/augment_device.py --repeats 5

Each image becomes two views and has the views' size. At 32 pixels the recipe is SimCLR's for CIFAR-10, in batches of
512 images. At 224 pixels it is the one for ImageNet, in batches of 64. `part=whole` is the whole augmentation.
`part=rest` is the devices' part if the host has cropped the images. Each repeat runs all settings in turn. Prints one
JSON line per setting with medians over the repeats.
"""

import argparse
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.augment import device
from simclr_jax.augment.policy import make_policy

# Image size, images per batch, operations of each view, strength of the jitter.
RECIPES = ((32, 512, 'crop flip jitter drop', 0.5), (224, 64, 'crop flip jitter drop blur', 1.0))
# Seconds for which a repeat makes batches, at least.
SECONDS = 1.0


def main():
    """Times every recipe and part in each repeat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=5)
    options = parser.parse_args()
    settings = [prepare(*recipe, part) for recipe in RECIPES for part in ('whole', 'rest')]
    rates = [[] for _ in settings]
    for _ in range(options.repeats):
        for found, (_, step, batch) in zip(rates, settings, strict=True):
            found.append(images_per_second(step, batch))
    for found, (setting, _, _) in zip(rates, settings, strict=True):
        rate = float(np.median(found))
        figures = {'images_per_second': round(rate, 1), 'spread': [round(min(found), 1), round(max(found), 1)]}
        print(json.dumps(setting | figures | {'device': jax.devices()[0].device_kind}))


def prepare(size, batch_size, view, strength, part):
    """Returns the setting as a dictionary, a compiled function of a step's number, and the images per batch."""
    policy = make_policy(size, views=(view, view), parameters={'jitter': {'strength': strength}})
    shape = (batch_size, size, size, 3)
    if part == 'rest':
        policy = policy.split()[1]
        shape = (batch_size, 2, size, size, 3)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

    @jax.jit
    def augment(images, number):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), number), batch_size)
        return device.augment(images, keys, policy)

    make_views = functools.partial(augment, images)
    start = time.perf_counter()
    make_views(0).block_until_ready()
    setting = {'size': size, 'batch_size': batch_size, 'view': view, 'part': part}
    return setting | {'first_call_seconds': round(time.perf_counter() - start, 2)}, make_views, batch_size


def images_per_second(make_views, batch_size):
    """Measures images per second of successive pairs of batches."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        # Two batches in flight, as in training.
        first, second = make_views(2 * count), make_views(2 * count + 1)
        first.block_until_ready()
        second.block_until_ready()
        count += 1
    return 2 * count * batch_size / (time.perf_counter() - start)


if __name__ == '__main__':
    main()
