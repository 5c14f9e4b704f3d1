"""The model card beside exported weights: what they are, from which run, their inputs, and the lines that load them."""

import simclr_jax
from simclr_jax.augment.policy import CENTER_CROP_PROPORTION, SMALL_IMAGE_SIZE
from simclr_jax.config.paths import printable
from simclr_jax.evaluation.result_file import read_results
from simclr_jax.evaluation.results import Score, cell, headings
from simclr_jax.interop.exported import Exported

_TORCH = """
import torch
import simclr_resnet  # the file beside the weights

model = simclr_resnet.load('model.safetensors')
outputs = model(torch.rand(1, 3, {size}, {size}))  # a dictionary: {outputs}
maps = model.maps(torch.rand(1, 3, {size}, {size}))  # of the stem and each stage
"""
_STOCK = """
import torch
import {library}
import simclr_resnet  # the file beside the weights

model = simclr_resnet.adapt({make}, 'model.safetensors')
outputs = model(torch.rand(1, 3, {size}, {size}))  # {last}
"""
_SAVED_MODEL = """
import tensorflow as tf

model = tf.saved_model.load('.')
outputs = model(tf.zeros([1, {size}, {size}, 3], tf.uint8))  # or float32 in [0, 1]
features = outputs['final_avg_pool']
"""
_STABLEHLO = """
import jax.export
import numpy as np

program = jax.export.deserialize(bytearray(open('model.stablehlo', 'rb').read()))
outputs = program.call(np.zeros([1, {size}, {size}, 3], np.float32))  # a dictionary: {outputs}
"""
_ONNX = """
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession('model.onnx')
outputs = session.run(None, {{'images': np.zeros([1, 3, {size}, {size}], np.float32)}})  # a list: {outputs}
"""
_LOADING = {
    'safetensors': _TORCH,
    'torchvision': _STOCK.replace('{make}', 'torchvision.models.resnet{depth}()'),
    'timm': _STOCK.replace('{make}', "timm.create_model('resnet{depth}')"),
    'saved_model': _SAVED_MODEL,
    'stablehlo': _STABLEHLO,
    'onnx': _ONNX,
}
_NEEDS = {
    'safetensors': 'PyTorch and safetensors',
    'torchvision': 'torchvision and safetensors',
    'timm': 'timm and safetensors',
    'saved_model': 'TensorFlow',
    'stablehlo': 'JAX',
    'onnx': 'onnxruntime',
}


def text(network: Exported, kind: str, outputs: list[str], checked: str) -> str:
    """The card in Markdown.

    Args:
        network: Exported network.
        kind: Format of the file, one of `export.FORMATS`.
        outputs: Names of the file's outputs.
        checked: Sentence about the self-check.
    """
    sections = [
        f'# {_title(network)}',
        _what(network),
        '## Inputs\n\n' + _inputs(network, kind),
        f'## Load it\n\nThis needs {_NEEDS[kind]}:\n\n```python{_lines(network, kind, outputs)}```',
        f'## Check\n\n{checked}',
    ]
    scores = _scores(network)
    if scores:
        sections.append('## Results\n\n' + _table(scores))
    return '\n\n'.join(sections) + '\n'


def _title(network: Exported) -> str:
    return f'ResNet-{network.encoder.depth}, {"fine-tuned after" if network.is_classifier else "pretrained by"} SimCLR'


def _what(network: Exported) -> str:
    encoder, data = network.encoder, network.config.data
    images = {'tfds': data.name, 'digits': 'digits of scikit-learn'}.get(data.source, data.source)
    facts = {
        'run': f'{printable(network.directory)}, step {network.step:,}',
        'images': f'{printable(images)}, {network.image_size} pixels',
        'encoder': f'ResNet-{encoder.depth}, width {encoder.width:g}, stem {encoder.stem}, '
        f'sk_ratio {encoder.sk_ratio:g}, se_ratio {encoder.se_ratio:g}, {encoder.feature_width} features',
        'parameters': f'{sum(array.size for path, array in network.variables.items() if path[0] == "params"):,}',
        'projection head': f'{network.head_layers} layers',
        'classes': f'{network.num_classes or "none"}',
        'written by': f'simclr_jax {simclr_jax.__version__}',
    }
    return '\n'.join(['| | |', '|---|---|', *(f'| {name} | {value} |' for name, value in facts.items())])


def _inputs(network: Exported, kind: str) -> str:
    axes = 'N, H, W, 3' if kind in ('saved_model', 'stablehlo') else 'N, 3, H, W'
    size, encoder = network.image_size, network.encoder
    sizes = f'H = W = {size}' if kind == 'stablehlo' else f'any size, best H = W = {size}'
    lines = [f'* RGB images [{axes}], float32 in [0, 1], {sizes}.']
    if size > SMALL_IMAGE_SIZE:
        crop = f'the central square of {CENTER_CROP_PROPORTION:.3f} of the shorter side, then bicubic resizing'
    else:
        crop = 'bicubic resizing of the whole image'
    lines.append(f'* Preparation: {crop}, and values clipped to [0, 1].')
    if encoder.mean and kind in ('torchvision', 'timm'):
        lines.append(f'* Normalise them before the model: mean {list(encoder.mean)}, deviation {list(encoder.std)}.')
    elif encoder.mean:
        lines.append('* The model normalises them itself.')
    else:
        lines.append('* They are not normalised: mean 0, deviation 1.')
    return '\n'.join(lines)


def _lines(network: Exported, kind: str, outputs: list[str]) -> str:
    return _LOADING[kind].format(
        size=network.image_size,
        outputs=', '.join(outputs),
        library=kind,
        depth=network.encoder.depth,
        last=f'logits of {network.num_classes} classes' if network.num_classes else 'representations',
    )


def _scores(network: Exported) -> list[Score]:
    """What result.json says about this step of a run. The results of a classifier are in its run."""
    results = None if network.is_classifier else read_results(network.directory)
    if results is None or results.step != network.step:
        return []
    return [score for score in results.scores if score.encoder == 'simclr']


def _table(scores: list[Score]) -> str:
    titles = headings(score.row for score in scores)
    rows = [f'| {printable(titles[score.row])} | {cell(score)} |' for score in scores]
    return '\n'.join(['| measurement | |', '|---|---:|', *rows, '', 'Shares are in percent, with 95 % intervals.'])
