"""From predictions on the test images to a number with its interval."""

import functools

import numpy as np
from ml_collections import ConfigDict

from simclr_jax.metrics import classification


def grade(metric: str, draws: list[np.ndarray], labels: np.ndarray, config: ConfigDict | None) -> dict[str, float]:
    """A metric's mean over draws of the labels, its 95 % interval and its deviation over the draws.

    Args:
        metric: 'top1', 'mean_per_class', 'map' or 'map_11_point'.
        draws: for each draw predicted classes [Q] or scores [Q, K].
        labels: of the test images, [Q] or [Q, K].
        config: of the evaluation, for the bootstrap; None: no interval.

    Returns:
        'value', 'low' and 'high', and with several draws 'deviation': the fields of a Score.
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
