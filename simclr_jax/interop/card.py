"""The model card beside exported weights: what they are, from which run, their inputs, and the lines that load them."""

import simclr_jax
from simclr_jax.augment.policy import CENTER_CROP_PROPORTION, SMALL_IMAGE_SIZE
from simclr_jax.config.evaluation import TRAINED
from simclr_jax.config.paths import printable
from simclr_jax.evaluation.datasets import dataset_name
from simclr_jax.evaluation.result_file import read_results
from simclr_jax.evaluation.results import Score, cell, headings
from simclr_jax.interop.exported import Exported
from simclr_jax.interop.imported import origin_of
from simclr_jax.interop.torch_out import facts_of, module_of, torchvision_name
from simclr_jax.models.encoders import Encoder
from simclr_jax.models.resnet import ResNet

_TORCH = """
import torch
import {module}  # the file beside the weights

model = {module}.load('model.safetensors')
outputs = model(torch.rand(1, 3, {size}, {size}))  # a dictionary: {outputs}
maps = model.maps(torch.rand(1, 3, {size}, {size}))  # of the stem and each stage
"""
_STOCK = """
import torch
import {library}
import {module}  # the file beside the weights

model = {module}.adapt({make}, 'model.safetensors')
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
    'torchvision': _STOCK.replace('{make}', 'torchvision.models.{stock}()'),
    'timm': _STOCK.replace('{make}', "timm.create_model('{stock}')"),
    'saved_model': _SAVED_MODEL,
    'stablehlo': _STABLEHLO,
    'onnx': _ONNX,
}
_NEEDS = {
    'safetensors': 'PyTorch and safetensors',
    'torchvision': 'torchvision and safetensors',
    'timm': 'timm and safetensors',
    'saved_model': 'TensorFlow',
    'stablehlo': 'JAX and flatbuffers',
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
    what = {'finetune': 'fine-tuned as a classifier', 'linear_sgd': 'with a linear classifier'}.get(network.protocol)
    return f'{_name(network.encoder)}, {what or _beginning(network)}'


def _name(encoder: Encoder) -> str:
    return encoder.title.partition(' ')[0]


def _ratios(encoder: Encoder) -> str:
    return f'sk_ratio {encoder.sk_ratio:g}, se_ratio {encoder.se_ratio:g}, ' if isinstance(encoder, ResNet) else ''


def _beginning(network: Exported) -> str:
    """Where the weights of the encoder were before any classifier was trained."""
    if network.learnt.startswith('untrained '):
        return 'random weights'
    origin = origin_of(network.run)
    return f'converted from {printable(origin)}' if origin else 'pretrained by SimCLR'


def _what(network: Exported) -> str:
    encoder, data = network.encoder, network.config.data
    pretraining = '' if origin_of(network.run) else dataset_name('', data) or data.source
    facts = {
        'weights': f'{printable(network.directory)}, step {network.step:,}',
        'start': _beginning(network) if network.protocol else '',
        'pretraining': printable(pretraining),
        'learnt from': printable(network.images),
        'image size': f'{network.image_size} pixels',
        'encoder': f'{_name(encoder)}, width {encoder.width:g}, stem {encoder.stem}, {_ratios(encoder)}'
        f'{encoder.feature_width} features',
        'parameters': f'{sum(array.size for path, array in network.variables.items() if path[0] == "params"):,}',
        'projection head': f'{network.head_layers or "no"} layers',
        'classes': f'{network.num_classes or "none"}',
        'written by': f'simclr_jax {simclr_jax.__version__}',
    }
    rows = [f'| {name} | {value} |' for name, value in facts.items() if value]
    return '\n'.join(['| | |', '|---|---|', *rows])


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
        module=module_of(network.encoder),
        stock=torchvision_name(facts_of(network)),
        last=f'logits of {network.num_classes} classes' if network.num_classes else 'representations',
    )


def _scores(network: Exported) -> list[Score]:
    """What result.json of the run says about these weights."""
    results = read_results(network.run)
    if results is None:
        return []
    if network.protocol:
        # A training is named after its encoder, data set and label budget.
        named = [(f'{score.encoder} {score.dataset} {score.labels}', score) for score in results.scores]
        return [score for name, score in named if name == network.learnt and score.protocol == network.protocol]
    if results.step != network.step:
        return []
    return [score for score in results.scores if score.encoder == 'simclr' and score.protocol not in TRAINED]


def _table(scores: list[Score]) -> str:
    titles = headings(score.row for score in scores)
    rows = [f'| {printable(titles[score.row])} | {cell(score)} |' for score in scores]
    return '\n'.join(['| measurement | |', '|---|---:|', *rows, '', 'Shares are in percent, with 95 % intervals.'])
