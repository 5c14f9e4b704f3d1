"""A ResNet of PyTorch computed with NumPy, from its state dict alone. It checks a conversion without PyTorch.

The layers are found by torchvision's names. Nothing here knows our parameters.
"""

import itertools

import numpy as np

from simclr_jax.interop.torch_layers import StateDict, sigmoid, windows


class Network(StateDict):
    """A ResNet. Beside those of `StateDict`, its facts are 'pool' and 'border'."""

    def _encode(self, x: np.ndarray) -> np.ndarray:
        return self._last_map(x).mean((1, 2))

    def _last_map(self, x: np.ndarray) -> np.ndarray:
        """The last map of normalised images."""
        x = self._stem(x)
        for stage in itertools.count(1):
            if f'layer{stage}.0.conv1.weight' not in self._variables:
                return x
            for block in itertools.count():
                place = f'layer{stage}.{block}'
                if f'{place}.conv1.weight' not in self._variables:
                    break
                x = self._block(x, place, 2 if stage > 1 and not block else 1)
        raise AssertionError('unreachable')

    def _stem(self, x: np.ndarray) -> np.ndarray:
        border = self._facts.get('border', 0)
        x = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
        if 'conv1.0.weight' in self._variables:
            x = self._conv_norm(x, 'conv1.0', 'conv1.1', 2)
            x = self._conv_norm(x, 'conv1.3', 'conv1.4')
            return max_pool(self._conv_norm(x, 'conv1.6', 'bn1'), self._facts['pool'])
        if self._variables['conv1.weight'].shape[-1] == 3:
            return self._conv_norm(x, 'conv1', 'bn1')
        return max_pool(self._conv_norm(x, 'conv1', 'bn1', 2), self._facts['pool'])

    def _block(self, x: np.ndarray, place: str, strides: int) -> np.ndarray:
        shortcut = self._shortcut(x, place, strides)
        if f'{place}.conv2.conv.weight' in self._variables:
            x = self._conv_norm(x, f'{place}.conv1', f'{place}.bn1')
            x = self._selective_kernel(x, f'{place}.conv2', strides)
            x = self._norm(self._conv(x, f'{place}.conv3'), f'{place}.bn3')
        else:
            layers = 3 if f'{place}.conv3.weight' in self._variables else 2
            for layer in range(1, layers + 1):
                # The first 3x3 convolution has the stride.
                stride = strides if layer == layers - 1 else 1
                x = self._norm(self._conv(x, f'{place}.conv{layer}', stride), f'{place}.bn{layer}')
                x = np.maximum(x, 0) if layer < layers else x
        if f'{place}.se.fc1.weight' in self._variables:
            gate = np.maximum(self._conv(x.mean((1, 2), keepdims=True), f'{place}.se.fc1'), 0)
            x = x * sigmoid(self._conv(gate, f'{place}.se.fc2'))
        return np.maximum(x + shortcut, 0)

    def _shortcut(self, x: np.ndarray, place: str, strides: int) -> np.ndarray:
        if f'{place}.downsample.0.weight' in self._variables:
            return self._norm(self._conv(x, f'{place}.downsample.0', strides), f'{place}.downsample.1')
        if f'{place}.downsample.1.weight' in self._variables:
            x = self._conv(mean_pool(x, strides), f'{place}.downsample.1')
            return self._norm(x, f'{place}.downsample.2')
        return x

    def _selective_kernel(self, x: np.ndarray, place: str, strides: int) -> np.ndarray:
        first, second = np.split(self._conv_norm(x, f'{place}.conv', f'{place}.bn', strides), 2, axis=3)
        context = (first + second).mean((1, 2), keepdims=True)
        context = self._conv_norm(context, f'{place}.reduce', f'{place}.reduce_bn')
        to_first, to_second = np.split(self._conv(context, f'{place}.expand'), 2, axis=3)
        share = sigmoid(to_first - to_second)
        return share * first + (1 - share) * second

    def _conv_norm(self, x: np.ndarray, conv: str, norm: str, strides: int = 1) -> np.ndarray:
        return np.maximum(self._norm(self._conv(x, conv, strides), norm), 0)


def max_pool(x: np.ndarray, pool: str) -> np.ndarray:
    """Largest values in 3x3 windows of stride 2: [N, H, W, C] -> [N, ceil(H / 2), ceil(W / 2), C].

    Args:
        x: Feature maps [N, H, W, C].
        pool: 'symmetric': torchvision's padding, one on each side. 'same': TensorFlow's, which is (0, 1) at even sides.
    """
    before = [1 if pool == 'symmetric' or side % 2 else 0 for side in x.shape[1:3]]
    return windows(x, 3, 2, tuple((pad, 1) for pad in before), -np.inf).max((4, 5))


def mean_pool(x: np.ndarray, strides: int) -> np.ndarray:
    """ResNet-D's shortcut: means of 2x2 windows. The reference counts the zeros of the padding at stride 2 only."""
    padding = ((0, 1), (0, 1))
    total = windows(x, 2, strides, padding, 0.0).sum((4, 5))
    if strides > 1:
        return total / 4
    return total / windows(np.ones_like(x), 2, strides, padding, 0.0).sum((4, 5))
