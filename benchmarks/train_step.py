"""Measures the median seconds of a training step on ready images, as one JSON line.

With --feed=hybrid the images are crops as bytes, with --feed=decoded photographs of 375 x 500 pixels on canvases, and
the step makes their views on the device. Where the device's peak is known, the line has the share of it that the
network's operations reach.

python benchmarks/train_step.py --config=configs/cifar10.py:cpu
python benchmarks/train_step.py --config=configs/cifar10.py:r18 --batch-size=128 --steps=3 --repeats=5 \
  --peer='PYTHON peer_step.py --arch resnet18_cifar --batch 128'

python benchmarks/train_step.py --config=configs/imagenet.py --batch-size=256 --feed=hybrid --steps=30 --repeats=5 \
  --peer='PYTHON peer_step.py --arch resnet50 --image-size 224 --batch 256 --steps 30 --compile'       # on a GPU

Fields of the configuration can be set as in `simclr train`, for example --config.model.dtype=bfloat16.

With --peer, each repeat runs a few steps and then the peer, which prints a JSON line with seconds_per_step. The ratios
are the peer's seconds / ours, so that above 1 ours is faster.
"""

import argparse
import json
import shlex
import subprocess
import time

import jax
import numpy as np

from simclr_jax import sharding
from simclr_jax.build import make_task
from simclr_jax.chips import peak_flops
from simclr_jax.config import load_config
from simclr_jax.data.feed import plan_feed
from simclr_jax.planning.flops import step_flops
from simclr_jax.training import optim
from simclr_jax.training.step import init_state, make_train_step


def main():
    """Times the step of a configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', required=True)
    parser.add_argument('--batch-size', type=int, help='images per batch, by default that of the configuration')
    parser.add_argument(
        '--feed',
        choices=['host', 'hybrid', 'decoded'],
        default='host',
        help='side that augments: the host or, after the crop, the device',
    )
    parser.add_argument('--classes', type=int, default=10, help='classes of the probe')
    parser.add_argument('--steps', type=int, default=7, help='steps per repeat')
    parser.add_argument('--repeats', type=int, default=1)
    parser.add_argument('--peer', help='command of the peer, which runs in each repeat')
    options, rest = parser.parse_known_args()
    unknown = [argument for argument in rest if not argument.startswith('--config.') or '=' not in argument]
    if unknown:
        parser.error(f'{unknown[0]}: there is no such option; fields are set by --config.NAME=VALUE')
    overrides = [tuple(argument.removeprefix('--config.').split('=', 1)) for argument in rest]
    overrides += [('batch_size', str(options.batch_size))] if options.batch_size else []
    config = load_config(options.config, [*overrides, ('data.feed', options.feed)])
    images, size = config.batch_size, config.data.image_size

    mesh = sharding.make_mesh()
    feed = plan_feed(config, mesh)
    task = make_task(config, options.classes, mesh, feed.make_views)
    tx = optim.make_optimizer(config.optimizer.name, lambda step: 0.1, weight_decay=config.optimizer.weight_decay)
    state, key = init_state(task, tx, jax.random.key(0), mesh), jax.random.key(1)
    batch = sharding.to_global(made_up(feed.batch, options.classes), mesh)
    step = make_train_step(task, tx, mesh)

    def run():
        nonlocal state
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch, key))
        return time.perf_counter() - start

    first = run()
    ours, ratios = [], []
    for _ in range(options.repeats):
        ours.append(float(np.median([run() for _ in range(options.steps)])))
        if options.peer:
            ratios.append(_seconds_of_peer(options.peer) / ours[-1])
    median = float(np.median(ours))
    figures = {
        'config': options.config,
        'devices': f'{mesh.size} x {jax.devices()[0].device_kind}',
        'batch_size': images,
        'image_size': size,
        'feed': options.feed,
        'first_step_seconds': round(first, 2),
        'seconds_per_step': round(median, 4),
        'images_per_second': round(images / median, 1),
    }
    if peak := peak_flops(jax.devices()[0].device_kind):
        flops = step_flops(config, options.classes, mesh)
        figures['model_flops_utilization'] = round(flops / median / peak / mesh.size, 3)
    if ratios:
        figures['peer_seconds_over_ours'] = sorted(round(ratio, 2) for ratio in ratios)
        figures['median_over_ours'] = round(float(np.median(ratios)), 2)
    print(json.dumps(figures))


def made_up(described, classes):
    """A batch of noise of these shapes and dtypes."""
    random = np.random.default_rng(0)
    (images,) = described['index'].shape
    batch = {
        'label': random.integers(classes, size=images).astype(np.int32),
        'mask': np.ones(images, np.float32),
        'index': np.arange(images),
    }
    for name in described.keys() & {'views', 'images'}:
        pixels = random.integers(256, size=described[name].shape).astype(np.uint8)
        batch[name] = pixels if described[name].dtype == np.uint8 else pixels.astype(np.float32) / 255
    if 'sizes' in described:
        shape = np.minimum([375, 500], described['images'].shape[1:3])
        batch['sizes'] = np.tile(np.concatenate([shape, shape]).astype(np.float32), [images, 1])
    return batch


def _seconds_of_peer(command: str) -> float:
    """Runs the peer and returns seconds_per_step of the last line that it prints."""
    printed = subprocess.run(shlex.split(command), check=True, capture_output=True, text=True).stdout
    return json.loads(printed.strip().splitlines()[-1])['seconds_per_step']


if __name__ == '__main__':
    main()
