"""A small pretraining step in float64: its configuration, its batches, and comparisons of what it returns."""

import flax.traverse_util
import jax
import numpy as np
import optax

from simclr_jax.config import base_config

IMAGES, VIEWS, SIZE, CLASSES = 16, 2, 16, 10
# Float64 sums in a different order, amplified by batch norm and three updates.
RELATIVE = 1e-9


def small_config():
    """A pretraining configuration for the smallest ResNet."""
    config = base_config()
    config.data.image_size = SIZE
    config.model.depth = 6
    config.model.width = 0.125
    config.head.layers = 2
    return config


def random_batch(seed, images=IMAGES, views=VIEWS):
    """A batch of noise in the contract of the data room, in float64."""
    random = np.random.default_rng(seed)
    return {
        'views': random.uniform(size=(images, views, SIZE, SIZE, 3)),
        'label': random.integers(CLASSES, size=images).astype(np.int32),
        'mask': np.ones(images),
        'index': np.arange(images),
    }


def assert_same(found, expected, relative):
    """Asserts that two trees are equal, up to `relative` times the largest value of each array."""
    found, expected = (flax.traverse_util.flatten_dict(tree) for tree in (found, expected))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = relative * max(np.abs(value).max(), 1e-6)
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance, err_msg='/'.join(name))


def traces_of(opt_state):
    """The momentum buffers in the state of an optimiser."""

    def is_trace(node):
        return isinstance(node, optax.TraceState)

    return [node.trace for node in jax.tree.leaves(opt_state, is_leaf=is_trace) if is_trace(node)]
