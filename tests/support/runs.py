"""A small pretraining run on the digits, and readers of its work directory."""

import json
import pathlib

import jax
import numpy as np

from simclr_jax.sharding import make_mesh
from simclr_jax.training.checkpoints import Checkpoints
from support.paths import REPOSITORY

DIGITS = [
    f'--config={REPOSITORY}/configs/digits.py',
    '--config.model.width=0.125',
    '--config.data.image_size=8',
    '--config.batch_size=64',
    '--config.train_steps=12',
    '--config.warmup_epochs=0.2',
    '--config.optimizer.name=lars',
    '--config.optimizer.learning_rate=1.0',
    '--config.optimizer.scaling=linear',
    '--config.log_every_steps=4',
    '--config.checkpoint_every_steps=4',
    '--config.checkpoint_keep=2',
    '--config.knn.every_epochs=0.4',
]
# For runs in the process of the tests: depth 6 compiles faster.
DIGITS_HERE = [*DIGITS, '--config.model.depth=6']


def mesh_of(number):
    """What `sharding.make_mesh` is on a machine with so many devices."""
    return lambda devices=None: make_mesh(jax.devices()[:number] if devices is None else devices)


def rows_of(workdir):
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()]


def model_of(workdir):
    """Variables of the newest checkpoint, and its step."""
    checkpoints = Checkpoints(str(workdir), reads_only=True)
    model, step = checkpoints.restore_model(make_mesh(jax.devices()[:1]))
    checkpoints.close()
    return jax.device_get(model), step


def assert_same_bits(found, expected):
    """Asserts that two trees of arrays are equal bit for bit."""
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.atleast_1d(a).view(np.uint8), np.atleast_1d(b).view(np.uint8)),
        found,
        expected,
    )
