"""An EfficientNet or MobileNetV3 of PyTorch computed with NumPy. It checks a conversion without PyTorch.

The layers are found by torchvision's names. Nothing here knows our parameters.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from simclr_jax.interop.inverted import CLASSIFIERS, FAMILIES
from simclr_jax.interop.torch_layers import ACTIVATIONS, StateDict


class Network(StateDict):
    """The network of a state dict with torchvision's names.

    Args:
        variables: State dict.
        facts: Those of `StateDict`, and of `inverted.facts_of`.
    """

    def __init__(self, variables: Mapping[str, np.ndarray], facts: Mapping[str, Any]):
        super().__init__(variables, facts, CLASSIFIERS[FAMILIES[facts['encoder']]])

    def _encode(self, x: np.ndarray) -> np.ndarray:
        facts = self._facts
        x = self._conv_norm(x, 'features.0', facts['activation'], facts['stem_strides'])
        places, last = list(self._blocks()), 1
        for place, (strides, has_shortcut, activation) in zip(places, facts['blocks'], strict=True):
            y = self._block(x, f'{place}.block', strides, activation)
            x, last = x + y if has_shortcut else y, int(place.split('.')[1]) + 1
        h = self._conv_norm(x, f'features.{last}', facts['activation']).mean((1, 2))
        if 'classifier.0.weight' in self._variables:
            h = ACTIVATIONS[facts['activation']](self._dense(h, 'classifier.0'))
        return h

    def _blocks(self) -> Iterator[str]:
        """Names of the blocks. EfficientNet numbers them within their stage."""
        for number in itertools.count(1):
            if f'features.{number}.block.0.0.weight' in self._variables:
                yield f'features.{number}'
                continue
            if f'features.{number}.0.block.0.0.weight' not in self._variables:
                return
            for index in itertools.count():
                if f'features.{number}.{index}.block.0.0.weight' not in self._variables:
                    break
                yield f'features.{number}.{index}'

    def _block(self, x: np.ndarray, place: str, strides: int, activation: str) -> np.ndarray:
        for layer in itertools.count():
            name = f'{place}.{layer}'
            if f'{name}.fc1.weight' in self._variables:
                gate = ACTIVATIONS[self._facts['inner']](self._conv(x.mean((1, 2), keepdims=True), f'{name}.fc1'))
                x = x * ACTIVATIONS[self._facts['gate']](self._conv(gate, f'{name}.fc2'))
                continue
            is_depthwise = self._variables[f'{name}.0.weight'].shape[1] == 1
            is_last = f'{place}.{layer + 1}.0.weight' not in self._variables and not self._has_gate(place, layer + 1)
            x = self._conv_norm(x, name, '' if is_last else activation, strides if is_depthwise else 1)
            if is_last:
                return x
        raise AssertionError('unreachable')

    def _has_gate(self, place: str, layer: int) -> bool:
        return f'{place}.{layer}.fc1.weight' in self._variables

    def _conv_norm(self, x: np.ndarray, name: str, activation: str, strides: int = 1) -> np.ndarray:
        x = self._norm(self._conv(x, f'{name}.0', strides), f'{name}.1', self._facts['epsilon'])
        return ACTIVATIONS[activation](x) if activation else x
