"""TensorFlow's SavedModel: the network with the reference's outputs. Behind the TensorFlow door."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from etils import epath

from simclr_jax.interop.exported import Exported
from simclr_jax.interop.graph import NAMES, outputs


class _Operations:
    """TensorFlow's operations on maps [N, H, W, C].

    Args:
        variables: Receives a variable for each array in the first pass. Later passes use them in the same order.
    """

    def __init__(self, variables: list[tf.Variable]):
        self._variables, self._used = variables, 0

    def affine(self, x, scale, offset):
        return x * scale + offset

    def conv(self, x, kernel, bias, strides, padding):
        around: Any = [[0, 0], padding, padding, [0, 0]]
        x = tf.nn.conv2d(x, self._variable(kernel), strides, around)
        return x if bias is None else x + self._variable(bias)

    def depthwise(self, x, kernel, strides, padding):
        around: Any = [[0, 0], padding, padding, [0, 0]]
        # TensorFlow wants the kernel as [K, K, C, 1].
        return tf.nn.depthwise_conv2d(x, self._variable(kernel.swapaxes(2, 3)), [1, strides, strides, 1], around)

    def norm(self, x, values, epsilon):
        scale, offset, mean, variance = values
        values = map(self._variable, (mean, variance, offset, scale))
        return tf.nn.batch_normalization(x, *values, variance_epsilon=epsilon)

    def relu(self, x):
        return tf.nn.relu(x)

    def sigmoid(self, x):
        return tf.sigmoid(x)

    def hard_sigmoid(self, x):
        return tf.nn.relu6(x + 3) / 6

    def max_pool(self, x, pool):
        return tf.nn.max_pool2d(x, 3, 2, 'SAME' if pool == 'same' else [[0, 0], [1, 1], [1, 1], [0, 0]])

    def mean_pool(self, x, strides):
        if strides == 1:
            return tf.nn.avg_pool2d(x, 2, 1, 'SAME')
        return tf.nn.avg_pool2d(tf.pad(x, [[0, 0], [0, 1], [0, 1], [0, 0]]), 2, strides, 'VALID')

    def global_mean(self, x):
        return tf.reduce_mean(x, [1, 2], keepdims=True)

    def rows(self, x):
        return x[:, 0, 0]

    def halves(self, x):
        first, second = tf.split(x, 2, axis=3)
        return first, second

    def add(self, x, y):
        return x + y

    def subtract(self, x, y):
        return x - y

    def multiply(self, x, y):
        return x * y

    def dense(self, x, kernel, bias):
        return x @ self._variable(kernel) + self._variable(bias)

    def _variable(self, array):
        if self._used == len(self._variables):
            self._variables.append(tf.Variable(array, trainable=False))
        self._used += 1
        return self._variables[self._used - 1]


class _Module(tf.Module):
    """The network as a callable of images, with the reference's arguments and outputs."""

    def __init__(self, network: Exported):
        super().__init__()
        self._network, self.weights = network, []
        self._compute(tf.zeros([1, 64, 64, 3]))

    @tf.function(autograph=False)
    def __call__(self, images, trainable=False):
        if images.dtype == tf.uint8:
            images = tf.cast(images, tf.float32) / 255
        return self._compute(images)

    def _compute(self, images):
        return outputs(_Operations(self.weights), self._network, images)


def write(network: Exported, directory: epath.Path) -> None:
    """Writes a SavedModel.

    It is called with images [N, H, W, 3], float32 in [0, 1] or uint8, and returns the reference's dictionary. Its
    signatures are `serving_default` (float32) and `uint8`.

    Args:
        network: Network to write.
        directory: Existing directory.
    """
    module: Any = _Module(network)
    shape = [None, None, None, 3]
    signatures = {
        name: module.__call__.get_concrete_function(tf.TensorSpec(shape, dtype, 'images'), trainable=False)
        for name, dtype in (('serving_default', tf.float32), ('uint8', tf.uint8))
    }
    tf.saved_model.save(module, str(directory), signatures)


def load(directory: epath.Path) -> tuple[str, Callable[[np.ndarray], dict[str, np.ndarray]]]:
    """Loads a SavedModel anew. Returns what runs it, and the function of images [N, H, W, 3]."""
    with tf.device('CPU'):
        module = tf.saved_model.load(str(directory))

    def compute(images: np.ndarray) -> dict[str, np.ndarray]:
        with tf.device('CPU'):
            found = module(tf.constant(images), trainable=False)
        return {ours: found[theirs].numpy() for ours, theirs in NAMES.items() if theirs in found}

    return 'TensorFlow', compute
