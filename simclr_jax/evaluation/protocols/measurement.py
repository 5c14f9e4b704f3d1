"""The input of every protocol."""

import dataclasses
from collections.abc import Callable
from typing import Generic, TypeVar

from ml_collections import ConfigDict

from simclr_jax.config.label_budget import Labels
from simclr_jax.evaluation.datasets import Dataset
from simclr_jax.evaluation.extractor import FeatureExtractor
from simclr_jax.evaluation.masked_datasets import MaskedDataset, Predictions

Data = TypeVar('Data', Dataset, MaskedDataset)


@dataclasses.dataclass(frozen=True)
class MeasurementOn(Generic[Data]):
    """One measurement: an encoder on a data set with a label budget.

    Attributes:
        extractor: Encoder to measure.
        dataset: Data set with its splits.
        labels: Label budget. Protocols that have their own budget, or none, do not read it.
        config: Checked configuration of the evaluation.
        directory: Work directory of the encoder, local or gs://. Protocols that train keep their runs there.
        say: Function that receives lines for the user.
        show: Function that receives predictions for a picture, in the first process.
    """

    extractor: FeatureExtractor
    dataset: Data
    labels: Labels
    config: ConfigDict
    directory: str
    say: Callable[[str], None] = print
    show: Callable[[Predictions], None] = lambda predictions: None


Measurement = MeasurementOn[Dataset]
