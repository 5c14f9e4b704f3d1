"""Drawn circles, triangles and squares on textured backgrounds, with the masks of their pixels."""

import numpy as np
from PIL import Image

NAMES = ('background', 'circle', 'triangle', 'square')


def drawing(generator, shape, most=3, radii=(0.15, 0.3)):
    """A grey image, uint8 [H, W, 3], of one or several shapes, and the class of each pixel, uint8 [H, W]."""
    height, width = shape
    y, x = np.mgrid[:height, :width]
    image, classes = _texture(generator, y, x, 60, 0), np.zeros(shape, np.uint8)
    for _ in range(generator.integers(1, most, endpoint=True)):
        label = int(generator.integers(1, len(NAMES)))
        radius = min(shape) * generator.uniform(*radii)
        center = generator.uniform(radius, height - radius), generator.uniform(radius, width - radius)
        inside = _inside(label, (y - center[0]) / radius, (x - center[1]) / radius)
        # Circles are striped, triangles are grainy, squares are chequered.
        image[inside] = _texture(generator, y, x, generator.uniform(3, 6), label - 1)[inside]
        classes[inside] = label
    image = np.clip(image + generator.normal(0, 8, shape), 0, 255).astype(np.uint8)
    return np.stack([image] * 3, axis=-1), classes


def _inside(label, y, x):
    if label == 1:
        return y**2 + x**2 < 1
    if label == 2:
        return (y < 0.7) & (y > 2 * np.abs(x) - 1)
    return np.maximum(np.abs(y), np.abs(x)) < 0.85


def _texture(generator, y, x, period, kind):
    """Between two greys, float [H, W]: waves of any direction (0), grains (1), or waves of two directions (2)."""
    dark, bright = generator.uniform((20, 140), (110, 235))
    angle, *phases = generator.uniform(0, 2 * np.pi, 3)
    along, across = np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y
    waves = [np.sin(2 * np.pi * place / period + phase) for place, phase in zip((along, across), phases, strict=True)]
    wave = (waves[0], generator.uniform(-1, 1, y.shape), waves[0] * waves[1])[kind]
    return dark + (bright - dark) * (0.5 + 0.5 * wave)


def draw_folders(root, sizes, shape=(32, 32), seed=0, **drawn):
    """Writes images/SPLIT/NUMBER.png and masks/SPLIT/NUMBER.png for each split of `sizes`, {name: number of images}."""
    for number, (split, size) in enumerate(sizes.items()):
        generator = np.random.default_rng([seed, number])
        for index in range(size):
            for kind, pixels in zip(('images', 'masks'), drawing(generator, shape, **drawn), strict=True):
                path = root / kind / split / f'{index:04}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root
