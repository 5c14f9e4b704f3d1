"""A small pretrained network, and the start of a training on top of it."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax import sharding
from simclr_jax.models.heads import ProjectionHead
from simclr_jax.models.resnet import ResNet
from simclr_jax.models.simclr import SimCLR
from simclr_jax.tasks.finetune import init_from

SIZE = 8
ENCODER = ResNet(10, width=1 / 16)
HEAD = ProjectionHead(layers=3, out_dim=8)


def shapes_of(model):
    """Shapes of the variables of a model."""
    images = jnp.zeros((2, SIZE, SIZE, 3), jnp.float32)
    return jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep='/')


def trained_variables(dtype=np.float32, encoder=ENCODER):
    """Variables of a pretraining with seven classes, away from their initial values."""
    rng = np.random.default_rng(0)
    values = {
        path: 1 + 0.1 * rng.standard_normal(leaf.shape)
        if path.endswith(('scale', 'var'))
        else rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        for path, leaf in flat(shapes_of(SimCLR(encoder, HEAD, num_classes=7))).items()
    }
    return flax.traverse_util.unflatten_dict({path: value.astype(dtype) for path, value in values.items()}, sep='/')


def start_from(pretrained, task, tx, key, mesh):
    """The first state of a training on top of pretrained variables."""
    everywhere = sharding.replicated(mesh)
    return jax.jit(init_from, static_argnums=(1, 2), out_shardings=everywhere)(pretrained, task, tx, key)


def loss_of(task, params, batch_stats, batch):
    """Loss and metrics of the step."""
    return task.loss(task.outputs({'params': params, 'batch_stats': batch_stats}, batch, jax.random.key(0))[0], batch)
