"""torchvision's detector on one of our encoders learns ten drawn images by heart."""

import importlib.util
import itertools

import numpy as np
import pytest

pytest.importorskip('torch', reason='PyTorch is not installed, and never required')
pytest.importorskip('safetensors', reason="needs pip install 'simclr_jax[export]'")

import torch
from etils import epath

from simclr_jax.interop import torch_out
from support.paths import REPOSITORY
from support.weights import random_network

pytestmark = pytest.mark.slow
SIDE, IMAGES = 96, 10


@pytest.fixture
def recipe(monkeypatch):
    """The module configs/dense/torchvision_voc.py."""
    try:
        pytest.importorskip('torchvision')
    except RuntimeError as error:
        pytest.skip(f'torchvision does not fit PyTorch: {error}')
    from support.torchvision_ops import replace_missing

    replace_missing(monkeypatch)
    spec = importlib.util.spec_from_file_location('recipe', REPOSITORY / 'configs' / 'dense' / 'torchvision_voc.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(seed):
    """A rectangle and a disc on noise: (image, target), with classes 1 and 2."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 0.4, (SIDE, SIDE, 3))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    boxes = []
    for label, start in ((1, 0), (2, SIDE // 2)):
        width, height = rng.integers(24, 40, 2)
        left, top = start + rng.integers(0, SIDE // 2 - width), rng.integers(0, SIDE - height)
        inside = (columns >= left) & (columns < left + width) & (rows >= top) & (rows < top + height)
        if label == 2:
            x, y = (columns + 0.5 - left) / width - 0.5, (rows + 0.5 - top) / height - 0.5
            inside = x**2 + y**2 < 0.25
        image[inside] = rng.uniform(0.6, 1, 3)
        boxes.append([left, top, left + width, top + height])
    target = {'boxes': torch.tensor(boxes, dtype=torch.float32), 'labels': torch.tensor([1, 2])}
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32)), target


def test_ten_drawn_images(recipe, tmp_path):
    network = random_network({'model.depth': 18, 'data.image_size': SIDE, 'head.kind': 'none'}, classes=0)
    torch_out.write(network, epath.Path(tmp_path), 'torchvision')
    torch.manual_seed(0)
    few = {f'rpn_{when}_nms_top_n_{mode}': 100 for when in ('pre', 'post') for mode in ('train', 'test')}
    model = recipe.make_detector(str(tmp_path), 3, min_size=SIDE, max_size=SIDE, box_batch_size_per_image=64, **few)
    before = {name: values.clone() for name, values in model.backbone.body.state_dict().items()}
    weights = torch_out.read_state_dict(str(tmp_path / torch_out.FILE))[0]
    for name, values in before.items():
        np.testing.assert_array_equal(values.numpy(), weights[name])
    examples = [drawn(seed) for seed in range(IMAGES)]
    halves = [tuple(map(list, zip(*examples[start : start + 5], strict=True))) for start in (0, 5)]
    recipe.train(model, itertools.cycle(halves), steps=150, learning_rate=0.003, milestones=(110, 140), warmup=20)
    with torch.no_grad():
        found = model([image for image, _ in examples])
    right = 0
    for prediction, (_, target) in zip(found, examples, strict=True):
        for box, label in zip(target['boxes'], target['labels'], strict=True):
            of_class = prediction['boxes'][(prediction['labels'] == label) & (prediction['scores'] > 0.5)]
            overlaps = recipe.torchvision.ops.box_iou(box[None], of_class) if len(of_class) else torch.zeros(1)
            right += bool(overlaps.max() > 0.5)
    assert right >= 18, f'{right} of 20 objects are found'
