"""SimCLR's EfficientNet and MobileNetV3 in PyTorch, which alone it needs. `simclr export` puts it beside the weights.

    model = load('model.safetensors')
    outputs = model(torch.rand(1, 3, 224, 224))

This file is a part of simclr_jax. Licence: Apache-2.0.
"""

import json
import struct

from torch import nn
from torch.nn import functional

ACTIVATIONS = {
    'relu': nn.ReLU,
    'swish': nn.SiLU,
    'hard_swish': nn.Hardswish,
    'sigmoid': nn.Sigmoid,
    'hard_sigmoid': nn.Hardsigmoid,
}
# Name of the classifier. Dropout and activation are numbered too.
CLASSIFIERS = {'efficientnet': 'classifier.1', 'mobilenet': 'classifier.3'}


class ConvNorm(nn.Sequential):
    """A convolution of a shape [D, C / groups, K, K], its norm, and an activation unless its name is ''."""

    def __init__(self, shape, stride, epsilon, activation):
        features, channels, size, _ = shape
        # A depthwise convolution is the only one of single channels.
        groups = features if channels == 1 else 1
        conv = nn.Conv2d(channels * groups, features, size, stride, (size - 1) // 2, groups=groups, bias=False)
        layers = [conv, nn.BatchNorm2d(features, epsilon)]
        super().__init__(*layers, *([ACTIVATIONS[activation]()] if activation else []))


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate that is computed from the means of all channels."""

    def __init__(self, shape, inner, gate):
        super().__init__()
        hidden, channels, _, _ = shape
        self.fc1, self.fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.inner, self.gate = ACTIVATIONS[inner](), ACTIVATIONS[gate]()

    def forward(self, x):
        """Scales the channels of maps [N, C, H, W]."""
        return x * self.gate(self.fc2(self.inner(self.fc1(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    """An inverted residual block: expansion, depthwise convolution, gate and projection."""

    def __init__(self, shapes, said, stride, has_shortcut, activation):
        super().__init__()
        self.has_shortcut = has_shortcut
        count = 1 + max(int(name.split('.')[1]) for name in shapes)
        layers = []
        for number in range(count):
            gate = shapes.get(f'block.{number}.fc1.weight')
            if gate:
                layers.append(SqueezeExcitation(gate, said['inner'], said['gate']))
                continue
            shape = shapes[f'block.{number}.0.weight']
            strided = stride if shape[1] == 1 else 1
            layers.append(ConvNorm(shape, strided, said['epsilon'], activation if number < count - 1 else ''))
        self.block = nn.Sequential(*layers)

    def forward(self, x):
        """[N, C, H, W] -> [N, D, ceil(H / stride), ceil(W / stride)]."""
        return x + self.block(x) if self.has_shortcut else self.block(x)


class Head(nn.Module):
    """The projection head, or its first layers. Only the last layer of a head has no ReLU."""

    def __init__(self, shapes, is_whole):
        super().__init__()
        self.layers = sum(name.startswith('dense') for name in shapes)
        self.rectified = self.layers - 1 if is_whole else self.layers
        for layer in range(1, self.layers + 1):
            features, channels = shapes[f'dense{layer}.weight']
            self.add_module(f'dense{layer}', nn.Linear(channels, features, bias=False))
            self.add_module(f'bn{layer}', nn.BatchNorm1d(features))

    def forward(self, h):
        """[N, F] -> the list [h, output of layer 1, ...]."""
        outputs = [h]
        for layer in range(1, self.layers + 1):
            y = getattr(self, f'bn{layer}')(getattr(self, f'dense{layer}')(outputs[-1]))
            outputs.append(functional.relu(y) if layer <= self.rectified else y)
        return outputs


class Inverted(nn.Module):
    """An EfficientNet or MobileNetV3 with the heads of SimCLR, under torchvision's names.

    Args:
        shapes: Shape of each entry of the state dict.
        said: What `simclr export` says about the network, see `facts`.
    """

    def __init__(self, shapes, said):
        super().__init__()
        self.mean, self.std = said['mean'], said['std']
        self.head_layer, self.whole_head = said['head_layer'], said['whole_head']
        self.features = _features(shapes, said)
        dense, last = shapes.get('classifier.0.weight'), shapes.get(f'{CLASSIFIERS[said["encoder"]]}.weight')
        layers = [nn.Dropout(0.0)]
        if dense:
            layers = [nn.Linear(dense[1], dense[0]), ACTIVATIONS[said['activation']](), nn.Dropout(0.0)]
        if last:
            layers.append(nn.Linear(last[1], last[0]))
        self.has_classifier = bool(last)
        self.classifier = nn.Sequential(*layers)
        head = below(shapes, 'head.')
        self.head = Head(head, said['whole_head']) if head else None

    def maps(self, images):
        """Maps of the stem, each stage (MobileNetV3: each block) and the last convolution of images [N, 3, H, W]."""
        x = images
        if self.mean:
            shape = 1, len(self.mean), 1, 1
            x = (x - x.new_tensor(self.mean).view(shape)) / x.new_tensor(self.std).view(shape)
        maps = []
        for part in self.features:
            x = part(x)
            maps.append(x)
        return maps

    def forward(self, images):
        """Encodes images.

        Args:
            images: float32 [N, 3, H, W] in [0, 1].

        Returns:
            {'representation': [N, F]}, with 'projection' [N, D] and 'logits' [N, K] where the network has these heads.
        """
        before = self.classifier[:-1] if self.has_classifier else self.classifier
        h = before(self.maps(images)[-1].mean((2, 3)))
        layers = [h] if self.head is None else self.head(h)
        outputs = {'representation': h}
        if self.head is not None and self.whole_head:
            outputs['projection'] = layers[-1]
        if self.has_classifier:
            outputs['logits'] = self.classifier[-1](layers[self.head_layer])
        return outputs


def _features(shapes, said):
    """Stem, blocks and last convolution. EfficientNet has its blocks in stages."""
    blocks, parts, number = iter(said['blocks']), [], 1
    parts.append(ConvNorm(shapes['features.0.0.weight'], said['stem_strides'], said['epsilon'], said['activation']))
    while f'features.{number}.0.weight' not in shapes:
        inside = below(shapes, f'features.{number}.')
        if 'block.0.0.weight' in inside:
            parts.append(Block(inside, said, *next(blocks)))
        else:
            count = 1 + max(int(name.split('.')[0]) for name in inside)
            parts.append(
                nn.Sequential(*(Block(below(inside, f'{index}.'), said, *next(blocks)) for index in range(count)))
            )
        number += 1
    parts.append(ConvNorm(shapes[f'features.{number}.0.weight'], 1, said['epsilon'], said['activation']))
    return nn.Sequential(*parts)


def below(shapes, prefix):
    """The entries below a prefix, without it."""
    return {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}


def facts(path):
    """What `simclr export` says about the network in a safetensors file."""
    with open(path, 'rb') as file:
        header = json.loads(file.read(struct.unpack('<Q', file.read(8))[0]))
    return json.loads(header['__metadata__']['simclr_jax'])


def load(path):
    """The network of a safetensors file, in inference mode.

    Args:
        path: The file `model.safetensors` of `simclr export --format=safetensors` or `torchvision`.
    """
    from safetensors.torch import load_file

    weights = load_file(path)
    model = Inverted({name: tuple(value.shape) for name, value in weights.items()}, facts(path))
    model.load_state_dict(weights)
    return model.eval()


def adapt(model, path):
    """Loads a file into a network of torchvision, whose classifier becomes that of the file.

    A classifier that the file lacks becomes the identity, so that the model returns representations.

    Args:
        model: Network of torchvision, for example torchvision.models.efficientnet_b0().
        path: The file `model.safetensors` of `simclr export --format=torchvision`.

    Returns:
        The same model in inference mode. It takes images in [0, 1], normalised as `facts(path)` says.
    """
    from safetensors.torch import load_file

    weights, name = load_file(path), CLASSIFIERS[facts(path)['encoder']]
    if f'{name}.weight' in weights:
        classes, features = weights[f'{name}.weight'].shape
        model.classifier[-1] = nn.Linear(features, classes)
    else:
        model.classifier[-1] = nn.Identity()
    model.load_state_dict(weights)
    return model.eval()
