"""SimCLR's ResNets in PyTorch. `simclr export` puts this file beside the weights. It needs PyTorch alone.

    model = load('model.safetensors')                      # an encoder with its heads
    outputs = model(images)                                # float32 [N, 3, H, W] in [0, 1]
    outputs['representation']                              # [N, F]

    model = adapt(torchvision.models.resnet50(), 'model.safetensors')

SimCLR's networks differ from those of torchvision and timm in two points. Their max pooling has TensorFlow's padding.
In depths 18 and 34 the first block has a convolution in its shortcut.

Copyright: the authors of simclr_jax. Licence: Apache-2.0.
"""

import json
import os
import struct

import torch
from torch import nn
from torch.nn import functional


class SameMaxPool2d(nn.Module):
    """Max pooling over 3x3 windows of stride 2 with TensorFlow's padding SAME.

    Rows and columns are padded one by one: before and after where their number is odd, only after where it is even.
    """

    def forward(self, x):
        """[N, C, H, W] -> [N, C, ceil(H / 2), ceil(W / 2)]."""
        height, width = x.shape[2] % 2, x.shape[3] % 2
        return functional.max_pool2d(functional.pad(x, (width, 1, height, 1), value=float('-inf')), 3, 2)


class MeanPool2d(nn.Module):
    """Mean over 2x2 windows, the beginning of ResNet-D's shortcut.

    At stride 1 the windows that reach beyond the image are means of fewer values. At stride 2 zeros are added to odd
    sides, and count.
    """

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        """[N, C, H, W] -> [N, C, ceil(H / stride), ceil(W / stride)]."""
        mode = 'replicate' if self.stride == 1 else 'constant'
        return functional.avg_pool2d(functional.pad(x, (0, 1, 0, 1), mode=mode), 2, self.stride)


class SelectiveKernel(nn.Module):
    """Two streams of a 3x3 convolution, mixed by attention to the mean of their sum."""

    def __init__(self, channels, features, stride, hidden):
        super().__init__()
        self.conv = conv(channels, 2 * features, 3, stride)
        self.bn = nn.BatchNorm2d(2 * features)
        self.reduce = conv(features, hidden, 1)
        self.reduce_bn = nn.BatchNorm2d(hidden)
        self.expand = conv(hidden, 2 * features, 1)

    def forward(self, x):
        """[N, channels, H, W] -> [N, features, ceil(H / stride), ceil(W / stride)]."""
        first, second = functional.relu(self.bn(self.conv(x))).chunk(2, dim=1)
        context = (first + second).mean((2, 3), keepdim=True)
        context = functional.relu(self.reduce_bn(self.reduce(context)))
        to_first, to_second = self.expand(context).chunk(2, dim=1)
        return second + torch.sigmoid(to_first - to_second) * (first - second)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate that is computed from the means of all channels."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
        """Scales the channels of maps [N, C, H, W]."""
        gate = functional.relu(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.fc2(gate))


class Block(nn.Module):
    """A residual block with two 3x3 convolutions, or the bottleneck 1x1, 3x3, 1x1."""

    def __init__(self, shapes, stride):
        super().__init__()
        channels = shapes['conv1.weight'][1]
        self.layers = 3 if 'conv3.weight' in shapes else 2
        for layer in range(1, self.layers + 1):
            strided = stride if layer == self.layers - 1 else 1
            if f'conv{layer}.conv.weight' in shapes:
                features, hidden = shapes[f'conv{layer}.conv.weight'][0] // 2, shapes[f'conv{layer}.reduce.weight'][0]
                self.add_module(f'conv{layer}', SelectiveKernel(channels, features, strided, hidden))
                self.add_module(f'bn{layer}', nn.Identity())
            else:
                features, _, size, _ = shapes[f'conv{layer}.weight']
                self.add_module(f'conv{layer}', conv(channels, features, size, strided))
                self.add_module(f'bn{layer}', nn.BatchNorm2d(features))
            channels = features
        hidden = shapes.get('se.fc1.weight')
        self.se = SqueezeExcitation(channels, hidden[0]) if hidden else nn.Identity()
        self.downsample = nn.Identity()
        if 'downsample.0.weight' in shapes:
            start = shapes['downsample.0.weight'][1]
            self.downsample = nn.Sequential(conv(start, channels, 1, stride), nn.BatchNorm2d(channels))
        elif 'downsample.1.weight' in shapes:
            start = shapes['downsample.1.weight'][1]
            self.downsample = nn.Sequential(MeanPool2d(stride), conv(start, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x):
        """[N, C, H, W] -> [N, D, ceil(H / stride), ceil(W / stride)]."""
        y = x
        for layer in range(1, self.layers + 1):
            y = getattr(self, f'bn{layer}')(getattr(self, f'conv{layer}')(y))
            if layer < self.layers:
                y = functional.relu(y)
        return functional.relu(self.se(y) + self.downsample(x))


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


class ResNet(nn.Module):
    """A ResNet with the heads of SimCLR. The shapes of a state dict say which one.

    Args:
        shapes: Shape of each entry of the state dict.
        pool: Padding of the max pooling, 'same' or 'symmetric'.
        mean, std: Mean and deviation of each colour that the images are normalised with. Empty: none.
        whole_head: Whether the last layer of the head is the one without ReLU.
        head_layer: Index in [h, output of the head's layer 1, ...] of the features that `fc` classifies.
        border: Pixels of zeros around the normalised images.
    """

    def __init__(self, shapes, pool='same', mean=(), std=(), whole_head=True, head_layer=0, border=0):
        super().__init__()
        self.mean, self.std, self.border = mean, std, border
        self.head_layer, self.whole_head = head_layer, whole_head
        if 'conv1.weight' in shapes:
            width, colours, size, _ = shapes['conv1.weight']
            is_small = size == 3
            self.conv1 = conv(colours, width, size, 1 if is_small else 2)
        else:
            narrow, colours = shapes['conv1.0.weight'][:2]
            width, is_small = shapes['conv1.6.weight'][0], False
            first, second = conv(colours, narrow, 3, 2), conv(narrow, narrow, 3)
            parts = [first, nn.BatchNorm2d(narrow), nn.ReLU(), second, nn.BatchNorm2d(narrow), nn.ReLU()]
            self.conv1 = nn.Sequential(*parts, conv(narrow, width, 3))
        self.bn1 = nn.BatchNorm2d(width)
        max_pool = SameMaxPool2d() if pool == 'same' else nn.MaxPool2d(3, 2, 1)
        self.maxpool = nn.Identity() if is_small else max_pool
        self.stages = len({name.split('.')[0] for name in shapes if name.startswith('layer')})
        for stage in range(1, self.stages + 1):
            self.add_module(f'layer{stage}', self._stage(below(shapes, f'layer{stage}.'), 1 if stage == 1 else 2))
        head = below(shapes, 'head.')
        self.head = Head(head, whole_head) if head else None
        self.fc = nn.Linear(shapes['fc.weight'][1], shapes['fc.weight'][0]) if 'fc.weight' in shapes else None

    @staticmethod
    def _stage(shapes, stride):
        blocks = 1 + max(int(name.split('.')[0]) for name in shapes)
        return nn.Sequential(*(Block(below(shapes, f'{block}.'), 1 if block else stride) for block in range(blocks)))

    def maps(self, images):
        """Feature maps ['stem', 'stage1', ...] of images [N, 3, H, W] in [0, 1], each [N, C, height, width]."""
        x = images
        if self.mean:
            shape = 1, len(self.mean), 1, 1
            x = (x - x.new_tensor(self.mean).view(shape)) / x.new_tensor(self.std).view(shape)
        x = functional.pad(x, [self.border] * 4)
        maps = [self.maxpool(functional.relu(self.bn1(self.conv1(x))))]
        for stage in range(1, self.stages + 1):
            maps.append(getattr(self, f'layer{stage}')(maps[-1]))
        return maps

    def forward(self, images):
        """Encodes images.

        Args:
            images: float32 [N, 3, H, W] in [0, 1].

        Returns:
            {'representation': [N, F]}, with 'projection' [N, D] and 'logits' [N, K] where the network has these heads.
        """
        h = self.maps(images)[-1].mean((2, 3))
        layers = [h] if self.head is None else self.head(h)
        outputs = {'representation': h}
        if self.head is not None and self.whole_head:
            outputs['projection'] = layers[-1]
        if self.fc is not None:
            outputs['logits'] = self.fc(layers[self.head_layer])
        return outputs


def conv(channels, features, size, stride=1):
    """A convolution without bias, whose padding does not depend on the size of the image."""
    return nn.Conv2d(channels, features, size, stride, padding=(size - 1) // 2, bias=False)


def below(shapes, prefix):
    """The entries below a prefix, without it."""
    return {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}


def facts(path):
    """What `simclr export` says about the network in a safetensors file."""
    with open(path, 'rb') as file:
        header = json.loads(file.read(struct.unpack('<Q', file.read(8))[0]))
    return json.loads(header['__metadata__']['simclr_jax'])


def max_pool_of(path):
    """The max pooling of an exported ResNet for images larger than 32 pixels.

    Args:
        path: The file `model.safetensors`, or another one in its directory.
    """
    said = facts(os.path.join(os.path.dirname(path), 'model.safetensors'))
    return SameMaxPool2d() if said['pool'] == 'same' else nn.MaxPool2d(3, 2, 1)


def load(path):
    """The network of a safetensors file, in inference mode.

    Args:
        path: The file `model.safetensors` of `simclr export --format=safetensors`.
    """
    from safetensors.torch import load_file

    said, weights = facts(path), load_file(path)
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    names = 'pool', 'mean', 'std', 'whole_head', 'head_layer', 'border'
    model = ResNet(shapes, **{name: said[name] for name in names})
    model.load_state_dict(weights)
    return model.eval()


def adapt(model, path):
    """Makes a ResNet of torchvision or timm compute what SimCLR's does, and loads a file into it.

    A classifier that the file lacks becomes the identity, so that the model returns representations.

    Args:
        model: ResNet of torchvision or timm, for example torchvision.models.resnet50().
        path: The file `model.safetensors` of `simclr export --format=torchvision` or `timm`.

    Returns:
        The same model in inference mode. It takes images in [0, 1], normalised as `facts(path)` says.
    """
    from safetensors.torch import load_file

    said, weights = facts(path), load_file(path)
    width, _, size, _ = weights['conv1.weight'].shape
    if size == 3:
        model.conv1, model.maxpool = conv(3, width, 3), nn.Identity()
    elif said['pool'] == 'same':
        model.maxpool = SameMaxPool2d()
    model.conv1.padding = tuple(padding + said['border'] for padding in model.conv1.padding)
    first = model.layer1[0]
    if 'layer1.0.downsample.0.weight' in weights and first.downsample is None:
        first.downsample = nn.Sequential(conv(width, width, 1), nn.BatchNorm2d(width))
    if 'fc.weight' in weights:
        classes, features = weights['fc.weight'].shape
        model.fc = nn.Linear(features, classes)
    else:
        model.fc = nn.Identity()
    model.load_state_dict(weights)
    return model.eval()
