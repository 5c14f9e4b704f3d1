"""Seconds of one training step on images that are ready, as one JSON line: the median of several.

With --feed=hybrid they are crops as bytes, and the step makes the views of them on the device. Where the device's peak
is known, the line says what share of it the network's operations are.

python benchmarks/train_step.py --config=configs/cifar10.py:cpu
python benchmarks/train_step.py --config=configs/cifar10.py:r18 --batch-size=128 --steps=3 --repeats=5 \
  --peer='PYTHON peer_step.py --arch resnet18_cifar --batch 128'

python benchmarks/train_step.py --config=configs/imagenet.py --batch-size=256 --feed=hybrid --steps=30 --repeats=5 \
  --peer='PYTHON peer_step.py --arch resnet50 --image-size 224 --batch 256 --steps 30 --compile'       # on a GPU

Each repeat of the last two is a few steps here and then the peer, which prints a JSON line with seconds_per_step.
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
from simclr_jax.data.feed import make_views, training_policy
from simclr_jax.planning.flops import step_flops
from simclr_jax.training import optim
from simclr_jax.training.step import init_state, make_train_step


def main():
    """Times the step of a configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', required=True)
    parser.add_argument('--batch-size', type=int, help='images; by default the configuration says')
    parser.add_argument('--feed', choices=['host', 'hybrid'], default='host', help='who augments')
    parser.add_argument('--classes', type=int, default=10, help='of the probe')
    parser.add_argument('--steps', type=int, default=7, help='in each repeat')
    parser.add_argument('--repeats', type=int, default=1)
    parser.add_argument('--peer', help='a command to compare with in each repeat')
    options = parser.parse_args()
    batch_size = [('batch_size', str(options.batch_size))] if options.batch_size else []
    config = load_config(options.config, batch_size)
    images, size = config.batch_size, config.data.image_size

    mesh = sharding.make_mesh()
    policy = training_policy(config)
    task = make_task(config, options.classes, mesh, make_views(options.feed, policy))
    tx = optim.make_optimizer(config.optimizer.name, lambda step: 0.1, weight_decay=config.optimizer.weight_decay)
    state, key = init_state(task, tx, jax.random.key(0), mesh), jax.random.key(1)
    random = np.random.default_rng(0)
    views = random.integers(256, size=(images, len(policy.views), size, size, 3)).astype(np.uint8)
    batch = {
        'views': views if options.feed == 'hybrid' else views.astype(np.float32) / 255,
        'label': random.integers(options.classes, size=images).astype(np.int32),
        'mask': np.ones(images, np.float32),
        'index': np.arange(images),
    }
    batch = sharding.to_global(batch, mesh)
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


def _seconds_of_peer(command: str) -> float:
    """What the last line that it prints says of a step."""
    printed = subprocess.run(shlex.split(command), check=True, capture_output=True, text=True).stdout
    return json.loads(printed.strip().splitlines()[-1])['seconds_per_step']


if __name__ == '__main__':
    main()
