"""Operations that each library has which networks are exported to, and the layers of our networks on them."""

import functools
from typing import Any, Protocol

import numpy as np

from simclr_jax.interop.exported import Exported
from simclr_jax.models.batch_norm import BATCH_NORM_EPSILON


class Operations(Protocol):
    """Operations of a library on its own tensors. Maps have its own order of axes."""

    def affine(self, x: Any, scale: np.ndarray, offset: np.ndarray) -> Any:
        """Multiplies each channel of maps by scale [C] and adds offset [C]."""
        ...

    def conv(self, x: Any, kernel: np.ndarray, bias: np.ndarray | None, strides: int, padding: tuple[int, int]) -> Any:
        """Convolves maps with a kernel HWIO, with zeros before and after the rows and the columns."""
        ...

    def depthwise(self, x: Any, kernel: np.ndarray, strides: int, padding: tuple[int, int]) -> Any:
        """Convolves each channel of maps by itself with a kernel [K, K, 1, C]. The padding is that of `conv`."""
        ...

    def norm(self, x: Any, values: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], epsilon: float) -> Any:
        """Normalises each channel of maps by moving statistics. The values are scale, offset, mean and variance."""
        ...

    def relu(self, x: Any) -> Any:
        """max(x, 0)."""
        ...

    def sigmoid(self, x: Any) -> Any:
        """1 / (1 + exp(-x))."""
        ...

    def hard_sigmoid(self, x: Any) -> Any:
        """min(max(x + 3, 0), 6) / 6."""
        ...

    def max_pool(self, x: Any, pool: str) -> Any:
        """Largest values in 3x3 windows of stride 2. The padding is one of models.resnet.POOLS."""
        ...

    def mean_pool(self, x: Any, strides: int) -> Any:
        """Means of 2x2 windows, see models/blocks.py: a border of zeros counts at stride 2, and none at stride 1."""
        ...

    def global_mean(self, x: Any) -> Any:
        """Mean of each channel: maps of one pixel."""
        ...

    def rows(self, x: Any) -> Any:
        """Maps of one pixel as rows [N, C]."""
        ...

    def halves(self, x: Any) -> tuple[Any, Any]:
        """First and second half of the channels of maps."""
        ...

    def add(self, x: Any, y: Any) -> Any:
        """x + y."""
        ...

    def subtract(self, x: Any, y: Any) -> Any:
        """x - y."""
        ...

    def multiply(self, x: Any, y: Any) -> Any:
        """x * y. One of them may be a map of one pixel."""
        ...

    def dense(self, x: Any, kernel: np.ndarray, bias: np.ndarray) -> Any:
        """x @ kernel + bias, for rows x."""
        ...


class Layers:
    """Layers of a network in inference mode.

    Args:
        operations: Operations of a library.
        network: Network to compute.
    """

    def __init__(self, operations: Operations, network: Exported):
        self.do, self.network, self.encoder = operations, network, network.encoder

    def normalised(self, images: Any) -> Any:
        """Images in [0, 1] as the encoder normalises them."""
        encoder = self.encoder
        if not encoder.mean:
            return images
        scale = 1 / np.array(encoder.std, np.float32)
        return self.do.affine(images, scale, -np.array(encoder.mean, np.float32) * scale)

    def conv(self, x: Any, place: str, strides: int = 1, border: int = 0) -> Any:
        """A convolution of the encoder, with its bias if it has one."""
        kernel = self.value('params', f'encoder/{place}/kernel')
        bias = self.network.variables.get(('params', 'encoder', *place.split('/'), 'bias'))
        return self.do.conv(x, kernel, bias, strides, self._padding(kernel, border))

    def depthwise(self, x: Any, place: str, strides: int = 1) -> Any:
        """A depthwise convolution of the encoder."""
        kernel = self.value('params', f'encoder/{place}/kernel')
        return self.do.depthwise(x, kernel, strides, self._padding(kernel, 0))

    @staticmethod
    def _padding(kernel: np.ndarray, border: int) -> tuple[int, int]:
        size = kernel.shape[0]
        return (size - 1) // 2 + border, size // 2 + border

    def norm(self, x: Any, place: str) -> Any:
        """A norm of the encoder."""
        return self.do.norm(x, self.norm_values(f'encoder/{place}'), self.encoder.batch_norm_epsilon)

    def activate(self, x: Any, name: str) -> Any:
        """An activation, one of models.inverted.ACTIVATIONS."""
        if name.endswith('swish'):
            return self.do.multiply(x, self.activate(x, name.replace('swish', 'sigmoid')))
        return getattr(self.do, name)(x)

    def heads(self, h: Any) -> dict[str, Any]:
        """Outputs of the projection head and the classifier that there are, by the reference's names."""
        network, found, layers = self.network, {}, [h]
        for number in range(1, network.head_layers + 1):
            kernel = self.value('params', f'head/dense{number}/kernel')
            scale, offset = self._scale_and_offset(f'head/bn{number}')
            is_last = network.has_whole_head and number == network.head_layers
            x = self.do.dense(layers[-1], kernel * scale, offset)
            layers.append(x if is_last else self.do.relu(x))
        if network.has_whole_head:
            found['proj_head_output'] = layers[-1]
        if network.num_classes:
            kernel, bias = (self.value('params', f'probe/{name}') for name in ('kernel', 'bias'))
            found['logits_sup'] = self.do.dense(layers[network.head_layer], kernel, bias)
        return found

    def _scale_and_offset(self, place: str) -> tuple[np.ndarray, np.ndarray]:
        """A norm of the head as x * scale + offset. It becomes a part of the dense layer before it."""
        scale, offset, mean, variance = self.norm_values(place)
        scale = scale / np.sqrt(variance + np.float32(BATCH_NORM_EPSILON))
        return scale, offset - mean * scale

    def norm_values(self, place: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Scale, offset, mean and variance."""
        value = functools.partial(self.value, 'params')
        scale = value(f'{place}/scale')
        # The last norm of a head has no offset.
        offset = self.network.variables.get(('params', *place.split('/'), 'bias'), np.zeros_like(scale))
        mean, variance = (self.value('batch_stats', f'{place}/{name}') for name in ('mean', 'var'))
        return scale, offset, mean, variance

    def value(self, tree: str, place: str) -> np.ndarray:
        """A variable."""
        return self.network.variables[(tree, *place.split('/'))]
