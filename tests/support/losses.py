"""Inputs of contrastive losses, their gradients on any number of devices, and their definitions as loops."""

import functools

import jax
import numpy as np
from jax.sharding import AxisType, PartitionSpec


def random_views(images, views, dimensions, seed=0):
    """Views that resemble each other, [images, views, dimensions] float32."""
    generator = np.random.default_rng(seed)
    z = generator.standard_normal((images, 1, dimensions)) + generator.standard_normal((images, views, dimensions))
    return z.astype(np.float32)


def value_and_gradient(loss):
    """Compiles ((loss, metrics), gradient) as a function of z."""
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def on_devices(loss, devices):
    """The loss of a global batch that is split over devices, as a function of the whole z."""
    mesh = jax.make_mesh((devices,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return jax.shard_map(
        functools.partial(loss, axis_name='data'),
        mesh=mesh,
        in_specs=PartitionSpec('data'),
        out_specs=PartitionSpec(),
    )


def loss_by_loops(name, z, normalize):
    """The losses written as the papers' sums, one positive pair at a time."""
    images, views, _ = z.shape
    rows = z.reshape(images * views, -1)
    if normalize:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = rows @ rows.T
    image = np.repeat(np.arange(images), views)
    terms = []
    for i in range(len(rows)):
        for j in range(len(rows)):
            if i == j or image[i] != image[j]:
                continue
            negatives = [similarity[i, k] for k in range(len(rows)) if image[k] != image[i]]
            if name.endswith('semi_hard'):
                negatives = sorted(s for s in negatives if s < similarity[i, j])[-1:]
            others = [similarity[i, k] for k in range(len(rows)) if k != i]
            terms.append(pair_term(name, similarity[i, j], np.array(negatives), np.array(others)))
    return np.mean(terms)


def pair_term(name, positive, negatives, others, temperature=0.5, margin=0.4):
    """The term of one positive pair."""
    if name == 'nt_xent':
        return -np.log(np.exp(positive / temperature) / np.exp(others / temperature).sum())
    if name.startswith('nt_logistic'):
        repulsion = np.log1p(np.exp(negatives / temperature))
        return np.log1p(np.exp(-positive / temperature)) + (repulsion.mean() if len(negatives) else 0.0)
    hinges = np.maximum(negatives - positive + margin, 0)
    return hinges.mean() if len(negatives) else 0.0
