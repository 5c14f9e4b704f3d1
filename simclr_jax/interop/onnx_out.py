"""ONNX: the network as a graph of standard operations."""

import itertools
from collections.abc import Callable

import numpy as np
from etils import epath

from simclr_jax.interop.exported import Exported
from simclr_jax.interop.extras import needs_extra
from simclr_jax.interop.graph import NAMES, outputs
from simclr_jax.interop.torch_names import to_torch

FILE = 'model.onnx'
# Version of the operations. Runtimes since 2022 know it.
OPSET = 17
# The IR version that belongs to it. Newer ones are refused by older runtimes.
IR_VERSION = 8
# Bytes of weights inside of the file.
_MOST_INSIDE = 2**31 - 2**27


class _Operations:
    """Nodes of a graph under construction. Tensors are names. Maps are [N, C, H, W]."""

    def __init__(self, make_node: Callable):
        self._make_node = make_node
        self.nodes, self.constants = [], {}
        self._numbers = itertools.count()

    def affine(self, x, scale, offset):
        shape = (1, -1, 1, 1)
        x = self._node('Mul', [x, self._constant(scale.reshape(shape))])
        return self._node('Add', [x, self._constant(offset.reshape(shape))])

    def conv(self, x, kernel, bias, strides, padding, groups=1):
        size, (before, after) = kernel.shape[0], padding
        constants = [to_torch(kernel)] if bias is None else [to_torch(kernel), bias]
        return self._node(
            'Conv',
            [x, *map(self._constant, constants)],
            kernel_shape=[size, size],
            strides=[strides, strides],
            pads=[before, before, after, after],
            group=groups,
        )

    def depthwise(self, x, kernel, strides, padding):
        return self.conv(x, kernel, None, strides, padding, groups=kernel.shape[-1])

    def norm(self, x, values, epsilon):
        return self._node('BatchNormalization', [x, *map(self._constant, values)], epsilon=epsilon)

    def relu(self, x):
        return self._node('Relu', [x])

    def sigmoid(self, x):
        return self._node('Sigmoid', [x])

    def hard_sigmoid(self, x):
        return self._node('HardSigmoid', [x], alpha=1 / 6, beta=0.5)

    def max_pool(self, x, pool):
        padding = {'auto_pad': 'SAME_UPPER'} if pool == 'same' else {'pads': [1, 1, 1, 1]}
        return self._node('MaxPool', [x], kernel_shape=[3, 3], strides=[2, 2], **padding)

    def mean_pool(self, x, strides):
        counts = int(strides > 1)
        settings = {'kernel_shape': [2, 2], 'strides': [strides, strides], 'count_include_pad': counts}
        return self._node('AveragePool', [x], pads=[0, 0, 1, 1], **settings)

    def global_mean(self, x):
        return self._node('GlobalAveragePool', [x])

    def rows(self, x):
        return self._node('Flatten', [x], axis=1)

    def halves(self, x):
        first, second = self._nodes('Split', [x], 2, axis=1)
        return first, second

    def add(self, x, y):
        return self._node('Add', [x, y])

    def subtract(self, x, y):
        return self._node('Sub', [x, y])

    def multiply(self, x, y):
        return self._node('Mul', [x, y])

    def dense(self, x, kernel, bias):
        return self._node('Gemm', [x, self._constant(kernel), self._constant(bias)])

    def rename(self, name, new):
        self.nodes.append(self._make_node('Identity', [name], [new]))

    def _constant(self, array):
        name = f'w{next(self._numbers)}'
        self.constants[name] = np.asarray(array, np.float32)
        return name

    def _node(self, kind, inputs, **attributes):
        return self._nodes(kind, inputs, 1, **attributes)[0]

    def _nodes(self, kind, inputs, count, **attributes):
        names = [f'x{next(self._numbers)}' for _ in range(count)]
        self.nodes.append(self._make_node(kind, inputs, names, **attributes))
        return names


def write(network: Exported, directory: epath.Path) -> None:
    """Writes model.onnx: float32 images [N, 3, H, W] in [0, 1] -> representation [N, F], projection and logits.

    Weights above 2 GiB lie beside it in model.onnx.data.

    Args:
        network: Network to write.
        directory: Existing directory.

    Raises:
        ConfigError: The package onnx is not installed.
    """
    with needs_extra('onnx'):
        import onnx
    helper, operations = onnx.helper, _Operations(onnx.helper.make_node)
    computed = outputs(operations, network, 'images')
    widths = {name: width_of(network, name) for name, theirs in NAMES.items() if theirs in computed}
    for name in widths:
        operations.rename(computed[NAMES[name]], name)
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        operations.nodes,
        'simclr',
        inputs=[helper.make_tensor_value_info('images', kind, ['N', 3, 'H', 'W'])],
        outputs=[helper.make_tensor_value_info(name, kind, ['N', width]) for name, width in widths.items()],
        initializer=[onnx.numpy_helper.from_array(array, name) for name, array in operations.constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)], producer_name='simclr_jax')
    model.ir_version = IR_VERSION
    # A file of this format holds at most 2 GiB. The weights of larger networks lie beside it.
    is_large = sum(array.nbytes for array in operations.constants.values()) > _MOST_INSIDE
    onnx.save_model(model, str(directory / FILE), save_as_external_data=is_large, location=f'{FILE}.data')
    onnx.checker.check_model(str(directory / FILE), full_check=not is_large)


def width_of(network: Exported, name: str) -> int:
    """Values per image of an output."""
    if name == 'representation':
        return network.encoder.feature_width
    if name == 'logits':
        return network.num_classes
    return len(network.variables['params', 'head', f'bn{network.head_layers}', 'scale'])


def load(directory: epath.Path) -> tuple[str, Callable[[np.ndarray], dict[str, np.ndarray]]]:
    """Loads model.onnx anew. Returns what runs it, and the function of images [N, H, W, 3]."""
    path = str(directory / FILE)
    try:
        import onnxruntime
    except ModuleNotFoundError:
        import onnx
        from onnx.reference import ReferenceEvaluator

        session, runner = ReferenceEvaluator(onnx.load(path)), "onnx's reference"
        names = [str(name) for name in session.output_names]
    else:
        session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        runner, names = 'onnxruntime', [output.name for output in session.get_outputs()]

    def compute(images: np.ndarray) -> dict[str, np.ndarray]:
        values = session.run(None, {'images': np.ascontiguousarray(images.transpose(0, 3, 1, 2))})
        return dict(zip(names, values, strict=True))

    return runner, compute
