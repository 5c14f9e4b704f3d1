"""The network in inference mode, written once for the libraries that it is exported to.

`outputs` calls the few operations of `Operations`, which each library has. It follows the definition of the networks in
models/, not their forms that are made for speed.
"""

import functools
from typing import Any, Protocol

import numpy as np

from simclr_jax.interop.exported import Exported
from simclr_jax.models.batch_norm import BATCH_NORM_EPSILON
from simclr_jax.models.resnet import ResNet


class Operations(Protocol):
    """Operations of a library on its own tensors. Maps have its own order of axes."""

    def affine(self, x: Any, scale: np.ndarray, offset: np.ndarray) -> Any:
        """Multiplies each channel of maps by scale [C] and adds offset [C]."""
        ...

    def conv(self, x: Any, kernel: np.ndarray, bias: np.ndarray | None, strides: int, padding: tuple[int, int]) -> Any:
        """Convolves maps with a kernel HWIO, with zeros before and after the rows and the columns."""
        ...

    def norm(self, x: Any, scale: np.ndarray, offset: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> Any:
        """Normalises each channel of maps by moving statistics, with the epsilon of models/batch_norm.py."""
        ...

    def relu(self, x: Any) -> Any:
        """max(x, 0)."""
        ...

    def sigmoid(self, x: Any) -> Any:
        """1 / (1 + exp(-x))."""
        ...

    def max_pool(self, x: Any, pool: str) -> Any:
        """Largest values in 3x3 windows of stride 2. The padding is one of models.resnet.POOLS."""
        ...

    def mean_pool(self, x: Any, strides: int) -> Any:
        """Means of 2x2 windows, see models/resnet.py: a border of zeros counts at stride 2, and none at stride 1."""
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


def outputs(operations: Operations, network: Exported, images: Any) -> dict[str, Any]:
    """Computes the network.

    Args:
        operations: Operations of a library.
        network: Network to compute.
        images: Images in [0, 1], in the library's order of axes.

    Returns:
        The dictionary of the reference's SavedModels: 'initial_conv', 'initial_max_pool', 'block_group1', ...,
        'final_avg_pool', with 'proj_head_output' and 'logits_sup' where the network has these heads.
    """
    return _Walk(operations, network).outputs(images)


# Our names of outputs -> those of the reference.
NAMES = {'representation': 'final_avg_pool', 'projection': 'proj_head_output', 'logits': 'logits_sup'}


class _Walk:
    def __init__(self, operations: Operations, network: Exported):
        self._do, self._network, self._encoder = operations, network, network.encoder

    def outputs(self, x: Any) -> dict[str, Any]:
        encoder, found = self._encoder, {}
        if encoder.mean:
            scale = 1 / np.array(encoder.std, np.float32)
            x = self._do.affine(x, scale, -np.array(encoder.mean, np.float32) * scale)
        found['initial_conv'], x = self._stem(x)
        found['initial_max_pool'] = x
        for stage, blocks in enumerate(ResNet.STAGES[encoder.depth], start=1):
            for block in range(1, blocks + 1):
                is_first = block == 1
                projects = is_first and (stage > 1 or encoder.projects_first)
                x = self._block(x, f'stage{stage}/block{block}', 2 if stage > 1 and is_first else 1, projects)
            found[f'block_group{stage}'] = x
        h = self._do.rows(self._do.global_mean(x))
        return found | {'final_avg_pool': h} | self._heads(h)

    def _stem(self, x: Any) -> tuple[Any, Any]:
        border = self._encoder.border
        if self._encoder.stem == 'cifar':
            first = self._conv(x, 'stem/conv', border=border)
            return first, self._do.relu(self._norm(first, 'stem/bn'))
        if self._encoder.sk_ratio > 0:
            x = self._do.relu(self._norm(self._conv(x, 'stem/conv1', 2, border), 'stem/bn1'))
            x = self._conv_norm(x, 'stem/conv2', 'stem/bn2')
            first, norm = self._conv(x, 'stem/conv3'), 'stem/bn3'
        else:
            first, norm = self._conv(x, 'stem/conv', 2, border), 'stem/bn'
        return first, self._do.max_pool(self._do.relu(self._norm(first, norm)), self._encoder.pool)

    def _block(self, x: Any, place: str, strides: int, projects: bool) -> Any:
        shortcut = self._shortcut(x, place, strides) if projects else x
        if self._encoder.bottleneck:
            x = self._conv_norm(x, f'{place}/conv1', f'{place}/bn1')
            if self._encoder.sk_ratio > 0:
                x = self._selective_kernel(x, f'{place}/sk', strides)
            else:
                x = self._conv_norm(x, f'{place}/conv2', f'{place}/bn2', strides)
            last = '3'
        else:
            x, last = self._conv_norm(x, f'{place}/conv1', f'{place}/bn1', strides), '2'
        x = self._norm(self._conv(x, f'{place}/conv{last}'), f'{place}/bn{last}')
        if self._encoder.se_ratio > 0:
            gate = self._do.relu(self._conv(self._do.global_mean(x), f'{place}/se/reduce'))
            x = self._do.multiply(x, self._do.sigmoid(self._conv(gate, f'{place}/se/expand')))
        return self._do.relu(self._do.add(x, shortcut))

    def _shortcut(self, x: Any, place: str, strides: int) -> Any:
        if self._encoder.sk_ratio > 0:
            x, strides = self._do.mean_pool(x, strides), 1
        return self._norm(self._conv(x, f'{place}/shortcut_conv', strides), f'{place}/shortcut_bn')

    def _selective_kernel(self, x: Any, place: str, strides: int) -> Any:
        first, second = self._do.halves(self._conv_norm(x, f'{place}/conv', f'{place}/bn', strides))
        context = self._do.global_mean(self._do.add(first, second))
        context = self._conv_norm(context, f'{place}/reduce', f'{place}/reduce_bn')
        to_first, to_second = self._do.halves(self._conv(context, f'{place}/expand'))
        # The softmax over two streams is the logistic function of their difference.
        share = self._do.sigmoid(self._do.subtract(to_first, to_second))
        return self._do.add(second, self._do.multiply(self._do.subtract(first, second), share))

    def _heads(self, h: Any) -> dict[str, Any]:
        network, found, layers = self._network, {}, [h]
        for number in range(1, network.head_layers + 1):
            kernel = self._value('params', f'head/dense{number}/kernel')
            scale, offset = self._scale_and_offset(f'head/bn{number}')
            is_last = network.has_whole_head and number == network.head_layers
            x = self._do.dense(layers[-1], kernel * scale, offset)
            layers.append(x if is_last else self._do.relu(x))
        if network.has_whole_head:
            found['proj_head_output'] = layers[-1]
        if network.num_classes:
            kernel, bias = (self._value('params', f'probe/{name}') for name in ('kernel', 'bias'))
            found['logits_sup'] = self._do.dense(layers[network.head_layer], kernel, bias)
        return found

    def _scale_and_offset(self, place: str) -> tuple[np.ndarray, np.ndarray]:
        """A norm of the head as x * scale + offset. It becomes a part of the dense layer before it."""
        scale, offset, mean, variance = self._norm_values(place)
        scale = scale / np.sqrt(variance + np.float32(BATCH_NORM_EPSILON))
        return scale, offset - mean * scale

    def _conv_norm(self, x: Any, conv: str, norm: str, strides: int = 1) -> Any:
        return self._do.relu(self._norm(self._conv(x, conv, strides), norm))

    def _conv(self, x: Any, place: str, strides: int = 1, border: int = 0) -> Any:
        kernel = self._value('params', f'encoder/{place}/kernel')
        bias = self._network.variables.get(('params', 'encoder', *place.split('/'), 'bias'))
        size = kernel.shape[0]
        return self._do.conv(x, kernel, bias, strides, ((size - 1) // 2 + border, size // 2 + border))

    def _norm(self, x: Any, place: str) -> Any:
        return self._do.norm(x, *self._norm_values(f'encoder/{place}'))

    def _norm_values(self, place: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Scale, offset, mean and variance."""
        value = functools.partial(self._value, 'params')
        scale = value(f'{place}/scale')
        # The last norm of a head has no offset.
        offset = self._network.variables.get(('params', *place.split('/'), 'bias'), np.zeros_like(scale))
        mean, variance = (self._value('batch_stats', f'{place}/{name}') for name in ('mean', 'var'))
        return scale, offset, mean, variance

    def _value(self, tree: str, place: str) -> np.ndarray:
        return self._network.variables[(tree, *place.split('/'))]
