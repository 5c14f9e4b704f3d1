"""The classifier that a run itself has trained: a distilled student's, or the probe of a pretraining."""

import functools

import jax

from simclr_jax.data.spec import DataError
from simclr_jax.evaluation.protocols.measurement import Measurement
from simclr_jax.evaluation.results import Score, grade
from simclr_jax.networks import make_model


def classifier(measurement: Measurement) -> list[Score]:
    """Scores the run's own classifier on the test images, without any further training.

    Args:
        measurement: Extractor of a run with a classifier, and a data set with the classes of its training.

    Raises:
        DataError: The run has no classifier, or one of other classes.
    """
    extractor, dataset = measurement.extractor, measurement.dataset
    if extractor.name == 'untrained':
        measurement.say('classifier: an untrained encoder has none; left out.')
        return []
    assert extractor.variables is not None, 'raw pixels have no classifier'
    probe = extractor.variables['params'].get('probe')
    if probe is None:
        raise DataError('this run has no classifier of its own; choose --protocols=linear')
    num_classes = len(probe['bias'])
    if num_classes != dataset.num_classes:
        raise DataError(
            f'the classifier of this run has {num_classes} classes, {dataset.name} has {dataset.num_classes}; '
            'choose the data of its training, or --protocols=linear'
        )
    # A distilled student has a classifier whatever the field `probe` says.
    model = make_model(extractor.config, 0).clone(num_classes=num_classes)
    predict = jax.jit(functools.partial(model.apply, method='classify'))
    logits = extractor.encode(dataset.test, functools.partial(predict, extractor.variables)).labelled()
    return [
        Score(
            *(dataset.name, 'classifier', '', '', dataset.metric, extractor.name),
            **grade(dataset.metric, [logits.values], logits.labels, measurement.config),
        )
    ]
