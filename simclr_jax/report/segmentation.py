"""A picture of segmentations: test images, their true classes, and what each encoder predicts."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from simclr_jax.config.paths import printable
from simclr_jax.evaluation.masked_datasets import Predictions
from simclr_jax.evaluation.results import ENCODERS
from simclr_jax.metrics.segmentation import IGNORED
from simclr_jax.report import figures

# Place of the picture in the work directory.
PICTURE = 'report/segmentation.png'
# Width of a cell, inches.
CELL = 1.9
COLOR_OF_IGNORED = 255, 255, 255
# Most classes in the legend.
NAMED = 40


def draw(directory: str, predictions: Sequence[Predictions]) -> epath.Path:
    """Draws a row for each image, with the classes in the same colours everywhere, and a legend of the classes shown.

    Args:
        directory: Work directory, local or gs://.
        predictions: Predictions of each encoder on the same images, at least one.

    Returns:
        Path of the picture.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    first = predictions[0]
    columns = {'image': first.images, 'truth': [colored(truth, len(first.class_names)) for truth in first.truths]}
    for found in predictions:
        title = f'{ENCODERS[found.encoder]}\nmIoU {100 * found.miou:.1f}'
        columns[title] = [colored(classes, len(found.class_names)) for classes in found.predicted]

    heights = [CELL * image.shape[0] / image.shape[1] for image in first.images]
    figure, cells = pyplot.subplots(
        len(heights), len(columns), squeeze=False, layout='constrained',
        figsize=(CELL * len(columns) + 1.5, sum(heights) + 0.8), height_ratios=heights,
    )  # fmt: skip
    for column, (title, pictures) in enumerate(columns.items()):
        cells[0, column].set_title(title, fontsize=10)
        for axes, picture in zip(cells[:, column], pictures, strict=True):
            axes.imshow(picture, interpolation='nearest')
            axes.axis('off')
    _add_legend(figure, predictions)
    path = epath.Path(directory) / PICTURE
    figures.save(path, figure, dpi=100)
    return path


def _add_legend(figure, predictions: Sequence[Predictions]) -> None:
    """Names the classes that occur in the picture."""
    from matplotlib.patches import Patch

    names = predictions[0].class_names
    maps = [classes for found in predictions for classes in (*found.truths, *found.predicted)]
    occurs = np.unique(np.concatenate([np.unique(classes) for classes in maps]))
    colors = (palette(len(names)) / 255).tolist()
    patches = [
        Patch(facecolor=tuple(colors[number]), edgecolor='grey', label=printable(names[number]))
        for number in occurs[occurs != IGNORED][:NAMED]
    ]
    if IGNORED in occurs:
        patches.append(Patch(facecolor='white', edgecolor='grey', label='ignored'))
    legend = figure.legend(handles=patches, loc='outside right upper', fontsize=9)
    for text in legend.get_texts():
        # A name with $ is no formula.
        text.set_parse_math(False)


def colored(classes: np.ndarray, num_classes: int) -> np.ndarray:
    """A map of classes, [H, W], in the colours of `palette`, uint8 [H, W, 3]. Ignored pixels are white."""
    colors = np.full((256, 3), COLOR_OF_IGNORED, np.uint8)
    colors[:num_classes] = palette(num_classes)
    return colors[classes]


def palette(num_classes: int) -> np.ndarray:
    """Colours of classes, uint8 [K, 3]: class 0 is dark grey, the others go round the circle of colours.

    Args:
        num_classes: Number of classes K, at least 1.
    """
    import colorsys

    # Neighbouring numbers are a golden section of the circle apart, with two brightnesses in turn.
    colors = [
        colorsys.hsv_to_rgb((0.6 + 0.618034 * number) % 1, 0.75, 0.95 if number % 2 else 0.7)
        for number in range(num_classes - 1)
    ]
    return np.round(255 * np.array([(0.25, 0.25, 0.25), *colors])).astype(np.uint8)
