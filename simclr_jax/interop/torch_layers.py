"""Layers of PyTorch computed with NumPy, from a state dict alone. They check a conversion without PyTorch.

Nothing here knows our parameters.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# Epsilon of PyTorch's norms where a network does not set it: in ResNets and heads.
EPSILON = 1e-5


class StateDict:
    """A state dict with moving statistics, and the outputs of a network of it.

    Args:
        variables: State dict with torchvision's names.
        facts: What the state dict does not say, see `torch_out.facts_of`: 'mean', 'std', and for heads 'whole_head' and
            'head_layer'.
        classifier: Name of the classifier.
    """

    def __init__(self, variables: Mapping[str, np.ndarray], facts: Mapping[str, Any], classifier: str = 'fc'):
        self._variables, self._facts, self._classifier = variables, facts, classifier
        self._dtype = np.dtype(np.float32)

    def _encode(self, x: np.ndarray) -> np.ndarray:
        """Representations [N, F] of normalised images [N, H, W, 3]."""
        raise NotImplementedError

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Applies the network.

        Args:
            images: float32 or float64 [N, H, W, 3] in [0, 1].

        Returns:
            'representation' [N, F], and 'projection' [N, D] and 'logits' [N, K] if the state dict has these heads.
        """
        self._dtype = images.dtype
        x = images
        if self._facts['mean']:
            mean, std = (np.array(self._facts[name], self._dtype) for name in ('mean', 'std'))
            x = (x - mean) / std
        h = self._encode(x)
        outputs, layers = {'representation': h}, self._head(h)
        if len(layers) > 1 and self._facts['whole_head']:
            outputs['projection'] = layers[-1]
        if f'{self._classifier}.weight' in self._variables:
            outputs['logits'] = self._dense(layers[self._facts.get('head_layer', 0)], self._classifier)
        return outputs

    def _head(self, h: np.ndarray) -> list[np.ndarray]:
        """[h, output of the head's layer 1, ...]. Only the last layer of a whole head has no ReLU."""
        outputs = [h]
        for layer in itertools.count(1):
            if f'head.dense{layer}.weight' not in self._variables:
                return outputs
            x = self._norm(self._dense(outputs[-1], f'head.dense{layer}'), f'head.bn{layer}')
            is_last = self._facts['whole_head'] and f'head.dense{layer + 1}.weight' not in self._variables
            outputs.append(x if is_last else np.maximum(x, 0))
        raise AssertionError('unreachable')

    def _conv(self, x: np.ndarray, name: str, strides: int = 1) -> np.ndarray:
        kernel = self._value(f'{name}.weight')
        padding = (kernel.shape[-1] - 1) // 2
        patches = windows(x, kernel.shape[-1], strides, ((padding, padding), (padding, padding)), 0.0)
        if kernel.shape[1] < x.shape[-1]:
            # A depthwise convolution, the only grouped one.
            return np.einsum('nhwcij,cij->nhwc', patches, kernel[:, 0])
        y = np.tensordot(patches, kernel, axes=([3, 4, 5], [1, 2, 3]))
        return y + self._value(f'{name}.bias') if f'{name}.bias' in self._variables else y

    def _dense(self, x: np.ndarray, name: str) -> np.ndarray:
        y = x @ self._value(f'{name}.weight').T
        return y + self._value(f'{name}.bias') if f'{name}.bias' in self._variables else y

    def _norm(self, x: np.ndarray, name: str, epsilon: float = EPSILON) -> np.ndarray:
        mean, variance, scale, offset = (
            self._value(f'{name}.{part}') for part in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return (x - mean) / np.sqrt(variance + self._dtype.type(epsilon)) * scale + offset

    def _value(self, name: str) -> np.ndarray:
        return self._variables[name].astype(self._dtype)


def windows(x: np.ndarray, size: int, strides: int, padding: tuple[tuple[int, int], ...], fill: float) -> np.ndarray:
    """Square windows of feature maps: [N, H, W, C] -> [N, H', W', C, size, size].

    Args:
        x: Feature maps [N, H, W, C].
        size: Rows and columns of a window.
        strides: Distance of the windows.
        padding: ((above, below), (left, right)).
        fill: Value of the padding.
    """
    x = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::strides, ::strides]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """The logistic function."""
    return (1 + np.tanh(x / 2)) / 2


# Activations by their name in models.inverted.
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'relu': lambda x: np.maximum(x, 0),
    'swish': lambda x: x * sigmoid(x),
    'sigmoid': sigmoid,
    'hard_swish': lambda x: x * np.clip(x + 3, 0, 6) / 6,
    'hard_sigmoid': lambda x: np.clip(x + 3, 0, 6) / 6,
}
