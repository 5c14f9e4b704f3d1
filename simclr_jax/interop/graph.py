"""The network in inference mode, written once for the libraries that it is exported to.

`outputs` calls the few operations of `Operations`, which each library has. It follows the definition of the networks in
models/, not their forms that are made for speed.
"""

from typing import Any

from simclr_jax.interop.exported import Exported
from simclr_jax.interop.inverted import Inverted
from simclr_jax.interop.operations import Layers, Operations
from simclr_jax.models.inverted import Block
from simclr_jax.models.mobilenet import MobileNet
from simclr_jax.models.resnet import ResNet

# Our names of outputs -> those of the reference.
NAMES = {'representation': 'final_avg_pool', 'projection': 'proj_head_output', 'logits': 'logits_sup'}


def outputs(operations: Operations, network: Exported, images: Any) -> dict[str, Any]:
    """Computes the network.

    Args:
        operations: Operations of a library.
        network: Network to compute.
        images: Images in [0, 1], in the library's order of axes.

    Returns:
        The maps, 'final_avg_pool', and 'proj_head_output' and 'logits_sup' where the network has these heads. The maps
        of a ResNet have the names of the reference's SavedModels: 'initial_conv', 'initial_max_pool', 'block_group1',
        ... Those of another encoder have the names of its parts. 'final_avg_pool' is the representation.
    """
    layers, encoder = Layers(operations, network), network.encoder
    x = layers.normalised(images)
    if isinstance(encoder, ResNet):
        maps = _ResNet(layers, encoder).maps(x)
        h = operations.rows(operations.global_mean(list(maps.values())[-1]))
    else:
        assert isinstance(encoder, Inverted), f'{encoder.title} has no graph'
        maps = _Inverted(layers, encoder).maps(x)
        h = operations.rows(operations.global_mean(maps['top']))
        if isinstance(encoder, MobileNet):
            kernel, bias = (layers.value('params', f'encoder/top/dense/{name}') for name in ('kernel', 'bias'))
            h = layers.activate(operations.dense(h, kernel, bias), encoder.activation)
    return maps | {'final_avg_pool': h} | layers.heads(h)


class _ResNet:
    """The maps of a ResNet by the reference's names."""

    def __init__(self, layers: Layers, encoder: ResNet):
        self._layers, self._do, self._encoder = layers, layers.do, encoder
        self._conv, self._norm = layers.conv, layers.norm

    def maps(self, x: Any) -> dict[str, Any]:
        """The maps of normalised images."""
        encoder, found = self._encoder, {}
        found['initial_conv'], x = self._stem(x)
        found['initial_max_pool'] = x
        for stage, blocks in enumerate(ResNet.STAGES[encoder.depth], start=1):
            for block in range(1, blocks + 1):
                is_first = block == 1
                projects = is_first and (stage > 1 or encoder.projects_first)
                x = self._block(x, f'stage{stage}/block{block}', 2 if stage > 1 and is_first else 1, projects)
            found[f'block_group{stage}'] = x
        return found

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

    def _conv_norm(self, x: Any, conv: str, norm: str, strides: int = 1) -> Any:
        return self._do.relu(self._norm(self._conv(x, conv, strides), norm))


class _Inverted:
    """The maps of an EfficientNet or a MobileNetV3 by the names of its parts."""

    def __init__(self, layers: Layers, encoder: Inverted):
        self._layers, self._do, self._encoder = layers, layers.do, encoder

    def maps(self, x: Any) -> dict[str, Any]:
        """The maps of normalised images."""
        encoder, found = self._encoder, {}
        x = self._conv_norm(x, 'stem/conv', 'stem/bn', encoder.activation, encoder.stem_stride)
        found['stem'], channels = x, encoder.stem_channels
        for stage, (blocks, strides) in enumerate(zip(encoder.blocks(), encoder.strides(), strict=True), start=1):
            for index, block in enumerate(blocks):
                place = f'stage{stage}/block{index + 1}'
                x = self._block(x, place, block, strides if index == 0 else 1, channels)
                channels = block.features
            found[f'stage{stage}'] = x
        return found | {'top': self._conv_norm(x, 'top/conv', 'top/bn', encoder.activation)}

    def _block(self, x: Any, place: str, block: Block, strides: int, channels: int) -> Any:
        start, layers = x, self._layers
        if block.expanded != channels:
            x = self._conv_norm(x, f'{place}/expand', f'{place}/expand_bn', block.activation)
        x = layers.norm(layers.depthwise(x, f'{place}/depthwise', strides), f'{place}/depthwise_bn')
        x = layers.activate(x, block.activation)
        if block.squeeze:
            gate = layers.activate(layers.conv(self._do.global_mean(x), f'{place}/se/reduce'), block.inner)
            x = self._do.multiply(x, layers.activate(layers.conv(gate, f'{place}/se/expand'), block.gate))
        x = layers.norm(layers.conv(x, f'{place}/project'), f'{place}/project_bn')
        has_shortcut = block.strides == 1 and block.features == channels
        return self._do.add(x, start) if has_shortcut else x

    def _conv_norm(self, x: Any, conv: str, norm: str, activation: str, strides: int = 1) -> Any:
        return self._layers.activate(self._layers.norm(self._layers.conv(x, conv, strides), norm), activation)
