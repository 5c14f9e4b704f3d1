"""The data sets that segmentations are measured on, and what is shown of their predictions."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from simclr_jax.data.masks import Coding, Masked, open_folders, open_tfds, with_classes


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
        return [f'{self.name}: {self.train.num_classes} classes, {", ".join(self.train.images.class_names)}.']


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
    return MaskedDataset(settings.tfds or settings.images, train, test)
