"""Drawn circles, triangles and squares on textured backgrounds, with the masks of their pixels."""

import numpy as np
from PIL import Image

NAMES = ('background', 'circle', 'triangle', 'square')


def drawing(generator, shape):
    """An image, uint8 [H, W, 3], of one to three shapes of any colour, and the class of each pixel, uint8 [H, W]."""
    height, width = shape
    y, x = np.mgrid[:height, :width]
    image, classes = _texture(generator, y, x), np.zeros(shape, np.uint8)
    for _ in range(generator.integers(1, 4)):
        label = int(generator.integers(1, len(NAMES)))
        radius = min(shape) * generator.uniform(0.15, 0.3)
        center = generator.uniform(radius, height - radius), generator.uniform(radius, width - radius)
        inside = _inside(label, (y - center[0]) / radius, (x - center[1]) / radius)
        # Each kind of shape has its own kind of texture, in any colours.
        image[inside] = _texture(generator, y, x, period=(3, 6, 12)[label - 1])[inside]
        classes[inside] = label
    noise = generator.normal(0, 8, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), classes


def _inside(label, y, x):
    if label == 1:
        return y**2 + x**2 < 1
    if label == 2:
        return (y < 0.7) & (y > 2 * np.abs(x) - 1)
    return np.maximum(np.abs(y), np.abs(x)) < 0.85


def _texture(generator, y, x, period=None):
    """Two colours that change in waves. Without a period, they change slowly."""
    colors = generator.uniform(30, 225, (2, 3))
    angle, phase = generator.uniform(0, np.pi), generator.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * (np.cos(angle) * y + np.sin(angle) * x) / (period or 60) + phase)
    return colors[0] + (colors[1] - colors[0]) * (0.5 + 0.5 * wave[..., None])


def draw_folders(root, sizes, shape=(32, 32), seed=0):
    """Writes images/SPLIT/NUMBER.png and masks/SPLIT/NUMBER.png for each split of `sizes`, {name: number of images}."""
    for number, (split, size) in enumerate(sizes.items()):
        generator = np.random.default_rng([seed, number])
        for index in range(size):
            for kind, pixels in zip(('images', 'masks'), drawing(generator, shape), strict=True):
                path = root / kind / split / f'{index:04}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root
