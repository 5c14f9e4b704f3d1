"""The input of every protocol."""

import dataclasses
from collections.abc import Callable

from ml_collections import ConfigDict

from simclr_jax.config.label_budget import Labels
from simclr_jax.evaluation.datasets import Dataset
from simclr_jax.evaluation.extractor import FeatureExtractor


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One measurement: an encoder on a data set with a label budget.

    Attributes:
        extractor: Encoder to measure.
        dataset: Data set with its splits.
        labels: Label budget. Protocols that have their own budget, or none, do not read it.
        config: Checked configuration of the evaluation.
        directory: Work directory of the encoder, local or gs://. Protocols that train keep their runs there.
        say: Function that receives lines for the user.
    """

    extractor: FeatureExtractor
    dataset: Dataset
    labels: Labels
    config: ConfigDict
    directory: str
    say: Callable[[str], None] = print
