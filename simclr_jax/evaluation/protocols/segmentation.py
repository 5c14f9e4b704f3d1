"""The protocol `segmentation`: a fully convolutional head on an encoder with dilated last stages.

Scores have one exact meaning. The longer side of a test image becomes `segmentation.test_size` pixels. The largest of
the bilinearly enlarged logits gives the class of each of these pixels. The classes are brought to the size of the mask
as it is in its file, by nearest neighbours, and all pixels of all masks are counted there that are not ignored.
"""

import functools
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from simclr_jax import distributed
from simclr_jax.data.mask_views import evaluation_batches, train_batches, unfitted
from simclr_jax.data.masks import Masked
from simclr_jax.data.reader import in_order
from simclr_jax.data.spec import Share
from simclr_jax.evaluation.features import extract
from simclr_jax.evaluation.masked_datasets import MaskedDataset, Predictions
from simclr_jax.evaluation.protocols import trainings
from simclr_jax.evaluation.protocols.measurement import MeasurementOn
from simclr_jax.evaluation.protocols.trainings import Programs
from simclr_jax.evaluation.results import Score
from simclr_jax.metrics.classification import confidence_interval
from simclr_jax.metrics.segmentation import confusion_matrix, intersection_over_union, mean_iou, mean_iou_of_weights
from simclr_jax.models.segmenter import Segmenter
from simclr_jax.networks import make_encoder, make_model
from simclr_jax.tasks.segment import Segment, float_views

NAME = 'segmentation'
# Images in the picture of predictions.
SHOWN = 5
# Settings that leave the training as it is.
_OF_THE_TEST = ('test_split', 'test_size')


def segmentation(measurement: MeasurementOn[MaskedDataset]) -> list[Score]:
    """The mean intersection over union of a head that is trained on images with masks, see the module's docstring.

    The recipe is that of FCNs on PASCAL VOC 2012 in mmselfsup. What differs: the learning rate falls by a cosine, the
    momentum is Nesterov's, and there is neither an auxiliary head, nor dropout, nor colour distortion.

    Args:
        measurement: Encoder to start from, images with masks, and the share of the training images to learn from.

    Raises:
        ValueError: An image or mask is not readable any more, or the encoder cannot have that output stride.
    """
    settings, dataset = _settings(measurement.config), measurement.dataset
    learnt = dataset.learnt_with(measurement.labels, measurement.config.seed)
    programs = _compile(measurement, learnt)
    variables = _train(measurement, learnt, programs)
    predicted = _predict(measurement, functools.partial(programs.predict, variables))
    confusions = distributed.from_first(lambda: _count(dataset, predicted), (ValueError,))
    value = mean_iou(confusions)
    if distributed.is_first():
        measurement.say(_of_each_class(dataset, confusions))
        measurement.show(_shown(measurement, predicted, value))
    low, high = confidence_interval(
        mean_iou_of_weights(confusions),
        len(confusions),
        draws=measurement.config.bootstrap_draws,
        seed=measurement.config.seed,
    )
    is_frozen = settings.after_block == len(make_encoder(measurement.extractor.config).parts) - 1
    detail = 'frozen' if is_frozen else 'fine-tuned'
    row = dataset.name, NAME, detail, str(measurement.labels), 'miou', measurement.extractor.name
    return [Score(*row, value=value, low=low, high=high)]


def _settings(config: ConfigDict) -> ConfigDict:
    """The protocol's group of the configuration. Where it counts epochs, steps are 0, as in the other groups."""
    settings = ConfigDict(config.segmentation.to_dict())
    if settings.epochs:
        settings.steps = 0
    return settings


def _compile(measurement: MeasurementOn[MaskedDataset], learnt: Masked) -> Programs:
    """The programs of the training. Their predictions are classes, uint8 [N, S, S]."""
    extractor, settings = measurement.extractor, _settings(measurement.config)
    model = make_model(extractor.config, 0)
    segmenter = Segmenter(
        encoder=model.encoder.clone(output_stride=settings.output_stride),
        num_classes=learnt.num_classes,
        channels=settings.channels,
        dtype=model.dtype,
    )
    frozen = trainings.frozen_parts(NAME, settings, model.encoder)
    task = Segment(segmenter, settings.image_size, extractor.mesh, frozen)
    return trainings.compile_programs(task, task.predict, settings, learnt.images, extractor)


def _train(measurement: MeasurementOn[MaskedDataset], learnt: Masked, programs: Programs) -> dict[str, Any]:
    """The model's variables after training."""
    extractor, settings = measurement.extractor, _settings(measurement.config)
    directory = trainings.claim(
        NAME,
        measurement,
        _of_the_training(settings),
        programs,
        name=f'{extractor.name} {learnt.images.name} {measurement.labels}',
        image_size=settings.image_size,
        content=learnt.digest,
    )
    return trainings.train(
        NAME,
        measurement,
        settings,
        programs,
        directory,
        batches=lambda step: train_batches(
            learnt,
            settings.image_size,
            batch_size=programs.batch_size,
            seed=measurement.config.seed,
            start_step=step,
            share=Share.of_this_process(extractor.mesh),
        ),
        make_views=float_views,
    )


def _of_the_training(settings: ConfigDict) -> ConfigDict:
    return ConfigDict({name: value for name, value in settings.to_dict().items() if name not in _OF_THE_TEST})


def _predict(measurement: MeasurementOn[MaskedDataset], predict) -> np.ndarray:
    """Predicted classes of the fitted views of all test images, uint8 [N, S, S], in every process."""
    extractor, settings, test = measurement.extractor, measurement.config.segmentation, measurement.dataset.test
    batch_size = trainings.fitting_batch_size(settings, test.images, extractor)
    batches = evaluation_batches(
        test,
        settings.test_size or settings.image_size,
        batch_size=batch_size,
        share=Share.of_this_process(extractor.mesh),
    )
    with extractor.progress(test.images.name, test.images.size) as advance:
        return extract(predict, batches, extractor.mesh, advance).values


def _count(dataset: MaskedDataset, predicted: np.ndarray) -> np.ndarray:
    """The pixels of each pair of classes in each test image, int64 [N, K, K]."""

    def count(index: int) -> np.ndarray:
        truth = dataset.test.classes(index)
        return confusion_matrix(unfitted(predicted[index], truth.shape), truth, dataset.test.num_classes)

    return np.stack(list(in_order(count, range(len(predicted)))))


def _of_each_class(dataset: MaskedDataset, confusions: np.ndarray) -> str:
    """One line with the IoU of each class in percent. A class that does not occur is left out."""
    found = zip(dataset.test.images.class_names, intersection_over_union(confusions.sum(axis=0)), strict=True)
    return '  IoU of ' + ', '.join(f'{name}: {100 * value:.1f}' for name, value in found if not np.isnan(value))


def _shown(measurement: MeasurementOn[MaskedDataset], predicted: np.ndarray, miou: float) -> Predictions:
    """A few test images, at equal distances in the split."""
    test = measurement.dataset.test
    chosen = np.unique(np.linspace(0, len(predicted) - 1, SHOWN).astype(int)).tolist()
    images, truths = zip(*(test.pair(index) for index in chosen), strict=True)
    restored = [unfitted(predicted[index], truth.shape) for index, truth in zip(chosen, truths, strict=True)]
    return Predictions(measurement.extractor.name, test.images.class_names, images, truths, restored, miou)
