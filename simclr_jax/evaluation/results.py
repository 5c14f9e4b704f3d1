"""Scores of evaluations with their intervals, and as text. `result_file` keeps them."""

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np
from ml_collections import ConfigDict

from simclr_jax.metrics import classification

ENCODERS = {'pixels': 'raw pixels', 'untrained': 'untrained encoder', 'simclr': 'SimCLR'}
# These metrics are shares from 0 to 1. Tables show them in percent.
SHARES = ('top1', 'mean_per_class', 'map', 'map_11_point', 'miou', 'agreement')


@dataclasses.dataclass(frozen=True)
class Score:
    """One number of an evaluation.

    Attributes:
        dataset: Name of the data set.
        protocol: Name of the protocol, one of `config.evaluation.PROTOCOLS`.
        detail: Variant within the protocol, such as 'k=20' or 'feature3'. '' if there is only one.
        labels: Label budget: 'all', a number per class such as '10', or a share such as '1%'. '' for measures
            without labels.
        metric: 'top1', 'mean_per_class', 'map', 'map_11_point', 'miou', 'alignment', 'uniformity', 'effective_rank'
            or 'agreement'.
        encoder: 'simclr', 'untrained' or 'pixels'.
        value: Mean over draws of the labels. Metrics in SHARES are from 0 to 1.
        low: Lower end of the 95 % interval, from the bootstrap over test images. None means that it is not known.
        high: Upper end of the same interval.
        deviation: Standard deviation over draws of the labels. None means a single draw.
    """

    dataset: str
    protocol: str
    detail: str
    labels: str
    metric: str
    encoder: str
    value: float
    low: float | None = None
    high: float | None = None
    deviation: float | None = None

    @property
    def row(self) -> tuple[str, str, str, str, str]:
        """Identity of the measurement without the encoder: (dataset, protocol, detail, labels, metric)."""
        return self.dataset, self.protocol, self.detail, self.labels, self.metric


@dataclasses.dataclass(frozen=True)
class Results:
    """All scores of a work directory's checkpoint.

    Attributes:
        step: Step of the checkpoint.
        scores: Scores, at most one for each row and encoder.
        datasets: Name of a data set to its description: the splits for learning and for testing, with their sizes.
        not_kept: Why they are not in result.json. None if they are.
    """

    step: int
    scores: tuple[Score, ...]
    datasets: dict[str, str]
    not_kept: Exception | None = None

    def joined_to(self, earlier: 'Results | None') -> 'Results':
        """Adds the scores of an earlier evaluation of the same checkpoint that were not measured again."""
        if earlier is None or earlier.step != self.step:
            return self
        measured = {(score.row, score.encoder) for score in self.scores}
        kept = [score for score in earlier.scores if (score.row, score.encoder) not in measured]
        datasets = earlier.datasets | self.datasets
        for name, text in earlier.datasets.items():
            # Measures without labels see the test split alone. Other protocols have named the training split too.
            if text.endswith(f' -> {datasets[name]}'):
                datasets[name] = text
        return Results(self.step, (*kept, *self.scores), datasets)


def headings(rows: Iterable[tuple[str, str, str, str, str]]) -> dict[tuple, str]:
    """Short titles of rows of scores, such as 'cifar10, knn k=20, all labels'.

    Args:
        rows: Rows, see `Score.row`.
    """
    titles = {}
    for row in rows:
        dataset, protocol, detail, labels, metric = row
        parts = [dataset, f'{protocol} {detail}'.strip()]
        if protocol == 'measures':
            parts = [dataset, f'{metric.replace("_", " ")} {detail}'.strip()]
        elif labels:
            parts.append(amount(labels))
        titles[row] = ', '.join(parts)
    return titles


def amount(labels: str) -> str:
    """A label budget in words. Budgets of a number per class read as '10 a class' in tables."""
    return f'{labels} a class' if labels.isdecimal() else f'{labels} labels'


def cell(score: Score | None) -> str:
    """A score as text: its value with its interval or deviation. Shares are in percent."""
    if score is None:
        return ''
    if score.metric not in SHARES:
        return f'{score.value:.3g}'
    text = f'{100 * score.value:.1f}'
    if score.deviation is not None:
        return f'{text} ± {100 * score.deviation:.1f}'
    if score.low is None or score.high is None:
        return text
    return f'{text} [{100 * score.low:.1f}, {100 * score.high:.1f}]'


def grade(metric: str, draws: list[np.ndarray], labels: np.ndarray, config: ConfigDict | None) -> dict[str, float]:
    """Computes a metric's mean over draws of the labels, its 95 % interval and its standard deviation.

    Args:
        metric: 'top1', 'mean_per_class', 'map' or 'map_11_point'.
        draws: Predicted classes [Q] or scores [Q, K] for each draw.
        labels: Labels of the test images, [Q] or [Q, K].
        config: Checked configuration of the evaluation, for the bootstrap. None leaves the interval out.

    Returns:
        Fields of a Score: 'value', with a configuration 'low' and 'high', and with several draws 'deviation'.
    """
    statistics = [_statistic(metric, found, labels) for found in draws]
    values = [statistic(np.ones(len(labels))) for statistic in statistics]
    found = {'value': float(np.mean(values))}
    if len(draws) > 1:
        found['deviation'] = float(np.std(values))
    if config is not None:
        found['low'], found['high'] = classification.confidence_interval(
            lambda weights: float(np.mean([statistic(weights) for statistic in statistics])),
            len(labels),
            draws=config.bootstrap_draws,
            seed=config.seed,
        )
    return found


def _statistic(metric: str, found: np.ndarray, labels: np.ndarray):
    """The metric as a function of the test images' weights [Q]."""
    if metric in ('map', 'map_11_point'):
        targets = labels if labels.ndim == 2 else (labels[:, None] == np.arange(found.shape[1])).astype(np.int32)
        return classification.mean_average_precision_of_weights(found, targets, eleven_point=metric == 'map_11_point')
    predicted = found if found.ndim == 1 else found.argmax(axis=1)
    return functools.partial(
        classification.top1 if metric == 'top1' else classification.mean_per_class, predicted, labels
    )
