"""Square views of images and their masks, for training and for evaluation. No TensorFlow.

An image is resized bilinearly, its mask to the same grid by nearest neighbours. Where the image does not fill the view,
the view is grey and the mask IGNORED. One batch holds the rows of this process: {

    'views': uint8 [R, 1, S, S, 3]   One view of each image.
    'classes': uint8 [R, S, S]       Of training batches: the class of each pixel, or IGNORED.
    'label': int32 [R]               -1: none.
    'mask': float32 [R]              1: an image. 0: padding.
    'index': int32 [R]               Position of the image in the split. -1: padding.
}
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from simclr_jax.data.masks import Masked
from simclr_jax.data.reader import in_order
from simclr_jax.data.resident import images_of_step
from simclr_jax.data.spec import Batch, Share
from simclr_jax.metrics.segmentation import IGNORED

# The shorter side of an image / the side of its training view: the least and the largest.
SCALES = 0.5, 2.0
# Value of the pixels that no image fills.
GREY = 128


def train_batches(
    masked: Masked, size: int, *, batch_size: int, seed: int, start_step: int = 0, share: Share = Share()
) -> Iterator[Batch]:
    """Endless batches of random views: scaled, cropped and flipped, see `random_view`.

    The images of a batch follow from (seed, step), and the view of a row from (seed, step, row). A run that resumes
    sees what an undisturbed run sees, with any number of processes.

    Args:
        masked: Split to learn from.
        size: Side S of a view, pixels.
        batch_size: Images per global batch, a multiple of share.count.
        seed: Seed of the order and of the views.
        start_step: Step of the first batch.
        share: Rows of this process.
    """
    own = share.rows(batch_size)

    def row_of(place: tuple[int, int]) -> dict[str, Any]:
        step, row = place
        index = int(images_of_step(step, batch_size, seed, masked.images.size)[row])
        view, classes = random_view(*masked.pair(index), size, np.random.default_rng([seed, step, row]))
        return _row(view, index) | {'classes': classes}

    rows = in_order(row_of, ((step, row) for step in itertools.count(start_step) for row in own))
    while True:
        yield _stacked(list(itertools.islice(rows, len(own))))


def evaluation_batches(masked: Masked, size: int, *, batch_size: int, share: Share = Share()) -> Iterator[Batch]:
    """Every image once, in the order of the split, as large as it fits into the view, in the upper left corner.

    The last batch is filled with rows of mask 0.

    Args:
        masked: Split to test on.
        size: Side S of a view, pixels.
        batch_size: Images per global batch, a multiple of share.count.
        share: Rows of this process.
    """
    own = share.rows(batch_size)

    def row_of(index: int) -> dict[str, Any]:
        if index >= masked.images.size:
            return _row(np.full((size, size, 3), GREY, np.uint8), -1)
        return _row(fitted_view(*masked.pair(index), size)[0], index)

    count = -(-masked.images.size // batch_size)
    rows = in_order(row_of, (batch * batch_size + row for batch in range(count) for row in own))
    for _ in range(count):
        yield _stacked(list(itertools.islice(rows, len(own))))


def _row(view: np.ndarray, index: int) -> dict[str, Any]:
    """One row of a batch. The index -1 makes it padding."""
    mask = np.float32(index >= 0)
    return {'views': view[np.newaxis], 'label': np.int32(-1), 'mask': mask, 'index': np.int32(index)}


def _stacked(rows: list[dict[str, Any]]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def random_view(
    image: np.ndarray, classes: np.ndarray, size: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A random view of an image, as in the published training of FCNs on PASCAL VOC.

    The shorter side becomes `size` times a uniform number from SCALES. Then a square is cut out at a uniform place, and
    flipped with probability 1/2.

    Args:
        image: uint8 [H, W, 3].
        classes: Class of each pixel, uint8 [H, W].
        size: Side S of the view, pixels.
        generator: Source of the random numbers.

    Returns:
        View, uint8 [S, S, 3], and its classes, uint8 [S, S].
    """
    scale = generator.uniform(*SCALES) * size / min(classes.shape)
    scaled = _scaled(classes.shape, scale)
    corner = tuple(int(generator.integers(0, max(length - size, 0), endpoint=True)) for length in scaled)
    view, classes = _window(image, classes, scaled, corner, size)
    return (view[:, ::-1], classes[:, ::-1]) if generator.random() < 0.5 else (view, classes)


def fitted_view(image: np.ndarray, classes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The whole image with its longer side at `size` pixels. Arguments and results are those of `random_view`."""
    return _window(image, classes, fitted_shape(classes.shape, size), (0, 0), size)


def fitted_shape(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Height and width of an image [H, W] in its `fitted_view`."""
    return _scaled(shape, size / max(shape))


def unfitted(classes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Brings the classes of a fitted view back to the image's own size, by nearest neighbours.

    Args:
        classes: Class of each pixel of the view, uint8 [S, S].
        shape: Height and width of the image.

    Returns:
        uint8 [H, W].
    """
    height, width = fitted_shape(shape, classes.shape[0])
    return _resized(classes[:height, :width], shape, Image.Resampling.NEAREST)


def _scaled(shape: tuple[int, ...], scale: float) -> tuple[int, int]:
    height, width = (max(1, round(scale * length)) for length in shape)
    return height, width


def _window(
    image: np.ndarray, classes: np.ndarray, scaled: tuple[int, int], corner: tuple[int, ...], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """A square of an image that is scaled to [height, width], with its upper left corner at (y, x)."""
    view, wanted = np.full((size, size, 3), GREY, np.uint8), np.full((size, size), IGNORED, np.uint8)
    # Only the part that is seen is resized.
    height, width = (min(size, length - start) for length, start in zip(scaled, corner, strict=True))
    zoom = [length / now for length, now in zip(classes.shape, scaled, strict=True)]
    top, left = (start * factor for start, factor in zip(corner, zoom, strict=True))
    bottom, right = ((corner[0] + height) * zoom[0], (corner[1] + width) * zoom[1])
    box = left, top, min(right, classes.shape[1]), min(bottom, classes.shape[0])
    view[:height, :width] = _resized(image, (height, width), Image.Resampling.BILINEAR, box)
    wanted[:height, :width] = _resized(classes, (height, width), Image.Resampling.NEAREST, box)
    return view, wanted


def _resized(pixels: np.ndarray, shape: tuple[int, ...], method: Image.Resampling, box=None) -> np.ndarray:
    height, width = shape
    return np.asarray(Image.fromarray(pixels).resize((width, height), method, box))
