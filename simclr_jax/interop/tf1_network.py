"""The reference's network in TensorFlow, on the variables of a TensorFlow 1 checkpoint. It checks a conversion.

Behind the TensorFlow door: imported only when used. The layers take their variables one after the other, by the names'
counters, as the reference's program does. Nothing here knows our parameters.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from simclr_jax.interop.tf1_names import BASE, PROBE, head_prefix, numbered
from simclr_jax.models.batch_norm import BATCH_NORM_EPSILON
from simclr_jax.models.resnet import ResNet


class Network:
    """The network of a checkpoint, with moving statistics.

    Args:
        variables: Variables by their names in the checkpoint.
        encoder: Architecture.
        part: Part of the checkpoint, see `tf1_names`.
    """

    def __init__(self, variables: Mapping[str, np.ndarray], encoder: ResNet, part: str = BASE):
        self._variables, self._encoder, self._part = variables, encoder, part
        self._convs = self._norms = 0
        self._dtype = np.dtype(np.float32)

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Applies the network.

        Args:
            images: float32 or float64 [N, H, W, 3] in [0, 1].

        Returns:
            'representation' [N, F], and 'projection' [N, D] and 'logits' [N, K] if the checkpoint has these heads.
        """
        self._dtype = images.dtype
        with tf.device('CPU'):
            return {name: values.numpy() for name, values in self.outputs(tf.constant(images)).items()}

    def outputs(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """The same as tensors."""
        self._convs = self._norms = 0
        h = tf.reduce_mean(self._stages(self._stem(images)), [1, 2])
        outputs = {'representation': h}
        prefix = head_prefix(self._part)
        names = sorted(name for name in self._variables if name.startswith(prefix))
        places = [name.removesuffix('/dense/kernel') for name in names if name.endswith('/dense/kernel')]
        if places:
            outputs['projection'] = self._head(h, places)
        if f'{PROBE}/kernel' in self._variables:
            outputs['logits'] = h @ self._value(f'{PROBE}/kernel') + self._value(f'{PROBE}/bias')
        return outputs

    def _stem(self, x: tf.Tensor) -> tf.Tensor:
        if self._encoder.stem == 'cifar':
            return self._conv_norm(x)
        if self._encoder.sk_ratio > 0:
            x = self._conv_norm(self._conv_norm(self._conv_norm(x, 2)))
        else:
            x = self._conv_norm(x, 2)
        return tf.nn.max_pool2d(x, 3, 2, 'SAME')

    def _stages(self, x: tf.Tensor) -> tf.Tensor:
        for stage, blocks in enumerate(ResNet.STAGES[self._encoder.depth]):
            for block in range(blocks):
                x = self._block(x, 2 if stage and not block else 1, project=block == 0)
        return x

    def _block(self, x: tf.Tensor, strides: int, *, project: bool) -> tf.Tensor:
        shortcut = self._shortcut(x, strides) if project else x
        if not self._encoder.bottleneck:
            x = self._norm(self._conv(self._conv_norm(x, strides)))
        elif self._encoder.sk_ratio > 0:
            x = self._norm(self._conv(self._selective_kernel(self._conv_norm(x), strides)))
        else:
            x = self._norm(self._conv(self._conv_norm(self._conv_norm(x), strides)))
        if self._encoder.se_ratio > 0:
            gate = tf.reduce_mean(x, [1, 2], keepdims=True)
            x *= tf.sigmoid(self._conv(tf.nn.relu(self._conv(gate))))
        return tf.nn.relu(x + shortcut)

    def _shortcut(self, x: tf.Tensor, strides: int) -> tf.Tensor:
        if self._encoder.sk_ratio > 0:
            if strides > 1:
                # The zeros of this padding count in the mean.
                x = tf.nn.avg_pool2d(tf.pad(x, [[0, 0], [0, 1], [0, 1], [0, 0]]), 2, strides, 'VALID')
            else:
                x = tf.nn.avg_pool2d(x, 2, 1, 'SAME')
            strides = 1
        return self._norm(self._conv(x, strides))

    def _selective_kernel(self, x: tf.Tensor, strides: int) -> tf.Tensor:
        streams = tf.stack(tf.split(self._conv_norm(x, strides), 2, axis=3))
        context = tf.reduce_mean(tf.reduce_sum(streams, 0), [1, 2], keepdims=True)
        weights = tf.stack(tf.split(self._conv(self._conv_norm(context)), 2, axis=3))
        return tf.reduce_sum(tf.nn.softmax(weights, axis=0) * streams, 0)

    def _head(self, x: tf.Tensor, places: list[str]) -> tf.Tensor:
        for place in places:
            x = self._normalized(x @ self._value(f'{place}/dense/kernel'), f'{place}/batch_normalization')
            if place != places[-1]:
                x = tf.nn.relu(x)
        return x

    def _conv_norm(self, x: tf.Tensor, strides: int = 1) -> tf.Tensor:
        return tf.nn.relu(self._norm(self._conv(x, strides)))

    def _conv(self, x: tf.Tensor, strides: int = 1) -> tf.Tensor:
        """The next convolution. With a stride, its padding does not depend on the size of the image."""
        name = numbered(f'{self._part}/conv2d', self._convs)
        self._convs += 1
        kernel = self._value(f'{name}/kernel')
        if strides > 1:
            before, after = (kernel.shape[0] - 1) // 2, kernel.shape[0] // 2
            x = tf.pad(x, [[0, 0], [before, after], [before, after], [0, 0]])
        x = tf.nn.conv2d(x, kernel, strides, 'VALID' if strides > 1 else 'SAME')
        return x + self._value(f'{name}/bias') if f'{name}/bias' in self._variables else x

    def _norm(self, x: tf.Tensor) -> tf.Tensor:
        """The next norm."""
        name = numbered(f'{self._part}/batch_normalization', self._norms)
        self._norms += 1
        return self._normalized(x, name)

    def _normalized(self, x: tf.Tensor, name: str) -> tf.Tensor:
        mean, variance, scale = (self._value(f'{name}/{part}') for part in ('moving_mean', 'moving_variance', 'gamma'))
        # The last norm of a head has no offset.
        offset = self._value(f'{name}/beta') if f'{name}/beta' in self._variables else 0.0
        return (x - mean) / np.sqrt(variance + BATCH_NORM_EPSILON) * scale + offset

    def _value(self, name: str) -> np.ndarray:
        return self._variables[name].astype(self._dtype)
