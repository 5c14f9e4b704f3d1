"""The data sets that segmentations are measured on, and what is shown of their predictions."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from simclr_jax.config.label_budget import Labels
from simclr_jax.config.paths import is_remote
from simclr_jax.data.masks import SPLIT, Coding, Masked, open_folders, open_tfds, with_classes
from simclr_jax.metrics.segmentation import IGNORED


@dataclasses.dataclass(frozen=True)
class MaskedDataset:
    """A data set of images with masks.

    Attributes:
        name: Name in the results.
        train: Split to learn from.
        test: Split to test on. Its classes are those of `train`.
        remark: Differences from the published data set. '' if there are none.
    """

    name: str
    train: Masked
    test: Masked
    remark: str = ''

    @property
    def description(self) -> str:
        """The splits with their sizes."""
        train, test = self.train.images, self.test.images
        return f'{train.name} ({train.size:,}) -> {test.name} ({test.size:,})'

    @property
    def notes(self) -> list[str]:
        """Lines for the user about the data set."""
        classes = f'{self.name}: the classes are {", ".join(self.train.images.class_names)}.'
        return list(dict.fromkeys((*self.train.images.notes, *self.test.images.notes, classes)))

    def learnt_with(self, labels: Labels, seed: int) -> Masked:
        """The images to learn from within a label budget: all of them, or a random share.

        Args:
            labels: Label budget without a number per class.
            seed: Seed of the draw.
        """
        return self.train if labels.fraction is None else self.train.part(labels.fraction, seed)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A few test images with the classes that an encoder's segmentation predicts.

    Attributes:
        encoder: 'simclr' or 'untrained'.
        class_names: Names of the K classes.
        images: Images, uint8 [H, W, 3].
        truths: Their true classes, uint8 [H, W], `segmentation.IGNORED` where there is none.
        predicted: Their predicted classes, uint8 [H, W].
        miou: Mean intersection over union of the whole test split.
    """

    encoder: str
    class_names: tuple[str, ...]
    images: Sequence[np.ndarray]
    truths: Sequence[np.ndarray]
    predicted: Sequence[np.ndarray]
    miou: float


def open_masked(config: ConfigDict, home: ConfigDict) -> MaskedDataset:
    """Opens the data set that the fields `segmentation.*` describe, and reads all of its masks once.

    Args:
        config: Checked configuration of an evaluation.
        home: Group `data` of the pretraining's configuration. It says where TFDS keeps its data.

    Raises:
        DataError: The data are missing or cannot be used, see `masks.open_folders`, `masks.open_tfds` and
            `masks.with_classes`.
    """
    settings = config.segmentation
    coding = Coding(settings.first_class, settings.ignore)

    def open_split(split: str) -> Masked:
        if settings.tfds:
            place = home.path if home.source == 'tfds' else ''
            return open_tfds(settings.tfds, split, place, int(home.memory_limit_gb * 2**30), coding)
        return open_folders(settings.images, settings.masks, settings.lists, split, coding)

    train, test = open_split(settings.train_split), open_split(settings.test_split)
    numbers = range(settings.first_class, settings.first_class + settings.classes)
    train = with_classes(train, tuple(settings.names) or tuple(map(str, numbers)))
    test = with_classes(test, train.images.class_names)
    return MaskedDataset(name_of(settings, train.num_classes), train, test)


def name_of(settings: ConfigDict, num_classes: int) -> str:
    """Name in the results: the test images, and in brackets what else makes the scores those of another data set.

    Masks are named unless they lie in a folder `masks` beside that of the images.

    Args:
        settings: Group `segmentation` of the configuration.
        num_classes: Number of classes.
    """
    details = [] if settings.train_split == 'train' else [f'from {settings.train_split}']
    if settings.tfds:
        place = f'{settings.tfds}/{settings.test_split}'
    else:
        paths = {field: _normal(settings[field]) for field in ('images', 'masks', 'lists')}
        folder, split = paths['images'].removesuffix(f'/{SPLIT}'), paths['images'].endswith(f'/{SPLIT}')
        beside = os.path.dirname(folder)
        if paths['masks'] == os.path.join(beside, 'masks', *([SPLIT] if split else [])):
            del paths['masks']
        place, *others = (path.replace(SPLIT, settings.test_split) for path in paths.values() if path)
        root = os.path.join(beside.replace(SPLIT, settings.test_split), '')
        details += [path.removeprefix(root) for path in others]
    details.append(f'{num_classes} classes' + (f' from {settings.first_class}' if settings.first_class else ''))
    if settings.ignore != IGNORED:
        details.append(f'{settings.ignore} ignored')
    return f'{place} ({", ".join(details)})'


def _normal(path: str) -> str:
    """The same text for paths that differ in slashes alone."""
    return path.rstrip('/') if is_remote(path) or not path else os.path.normpath(path)
