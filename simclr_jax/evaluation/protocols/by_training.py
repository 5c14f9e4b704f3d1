"""Protocols that train on augmented images: linear evaluation by SGD, fine-tuning, the multi-head linear probe.

`trainings` runs the trainings.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import distributed
from simclr_jax.augment.policy import default_parameters, make_policy
from simclr_jax.data.feed import host_batches
from simclr_jax.data.spec import DataError, Examples
from simclr_jax.evaluation.extractor import FeatureExtractor
from simclr_jax.evaluation.features import Features
from simclr_jax.evaluation.protocols import trainings
from simclr_jax.evaluation.protocols.measurement import Measurement
from simclr_jax.evaluation.protocols.trainings import FreezableTask, Programs
from simclr_jax.evaluation.results import Score, grade
from simclr_jax.models.classifier import Classifier, FeatureMapClassifiers
from simclr_jax.models.heads import ProjectionHead
from simclr_jax.networks import make_model
from simclr_jax.tasks.finetune import Finetune
from simclr_jax.tasks.multihead import MultiHead

# SimCLR's augmentation in all supervised training (arXiv 2002.05709, appendix B.5 to B.8).
VIEW = 'crop flip'


class SupervisedTask(FreezableTask, Protocol):
    """A task whose predictions are scored.

    Attributes:
        details: Names of its predictions in the results. A single prediction is called ''.
    """

    @property
    def details(self) -> tuple[str, ...]: ...  # noqa: D102

    def predict(self, variables: Any, images: jax.Array) -> jax.Array | dict[str, jax.Array]: ...  # noqa: D102


# (extractor, settings of the protocol, images to learn from, batch size) -> task.
MakeTask = Callable[[FeatureExtractor, ConfigDict, Examples, int], SupervisedTask]


def linear_sgd(measurement: Measurement) -> list[Score]:
    """SimCLR's linear evaluation by SGD (arXiv 2002.05709, appendix B.6)."""
    return evaluate_by_training('linear_sgd', _linear_task, measurement)


def finetune(measurement: Measurement) -> list[Score]:
    """Fine-tuning of the whole network or of its upper part (arXiv 2002.05709, B.5, and 2006.10029, section 2)."""
    return evaluate_by_training('finetune', _finetune_task, measurement)


def multihead(measurement: Measurement) -> list[Score]:
    """A linear classifier on each feature map (Goyal et al., arXiv 1905.01235)."""
    return evaluate_by_training('multihead', _multihead_task, measurement)


def evaluate_by_training(protocol: str, make_task: MakeTask, measurement: Measurement) -> list[Score]:
    """Trains with a label budget, and scores the predictions on the test images.

    Args:
        protocol: Name in the results. Its settings are the configuration's group of that name. Fields
            `grid_learning_rates` and `milestones` may be among them.
        make_task: Makes the task.
        measurement: Extractor to start from, data set and label budget.

    Raises:
        DataError: The protocol cannot be applied to this data set.
    """
    dataset, labels, config = measurement.dataset, measurement.labels, measurement.config
    trainer = Trainer(protocol, make_task, measurement)
    name = f'{measurement.extractor.name} {dataset.name} {labels}'
    settings = config[protocol]
    if settings.get('grid_learning_rates'):
        settings = _best_of_grid(trainer, name)
    programs = _compile(trainer, dataset.learnt_with(labels, config.seed))
    logits = _trained_logits(trainer, settings, programs, dataset.test, name)
    return [
        Score(
            *(dataset.name, protocol, detail, str(labels), dataset.metric, measurement.extractor.name),
            **grade(dataset.metric, [logits.values[:, number]], logits.labels, config),
        )
        for number, detail in enumerate(programs.details)
    ]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Everything that the trainings of one measurement share.

    Attributes:
        protocol: Name of the protocol and of its group in the configuration.
        make_task: Makes the task.
        measurement: Extractor to start from, data set and label budget.
    """

    protocol: str
    make_task: MakeTask
    measurement: Measurement


def _best_of_grid(trainer: Trainer, name: str) -> ConfigDict:
    """The settings with the learning rate and weight decay that do best on validation images."""
    measurement = trainer.measurement
    dataset, config = measurement.dataset, measurement.config
    learnt, held_out = dataset.divided(measurement.labels, config.validation_share, config.seed)
    programs = _compile(trainer, learnt)
    grid = config[trainer.protocol]
    tried = []
    for rate in grid.grid_learning_rates:
        for decay in grid.grid_weight_decays:
            settings = grid.copy_and_resolve_references()
            with settings.unlocked():
                settings.update(learning_rate=rate, weight_decay=decay / rate)
            logits = _trained_logits(trainer, settings, programs, held_out, f'{name} grid', keep=False)
            score = grade(dataset.metric, [logits.values[:, 0]], logits.labels, None)['value']
            tried.append((score, settings))
    return max(tried, key=lambda scored: scored[0])[1]


def _compile(trainer: Trainer, learnt: Examples) -> Programs:
    """The programs of a training. Their predictions are logits [N, D, K], one for each of the D details."""
    extractor, settings = trainer.measurement.extractor, trainer.measurement.config[trainer.protocol]
    batch_size = trainings.fitting_batch_size(settings, learnt, extractor)
    task = trainer.make_task(extractor, settings, learnt, batch_size)

    def predict(variables, images):
        logits = task.predict(variables, images)
        return jnp.stack(list(logits.values()), axis=1) if isinstance(logits, dict) else logits[:, None]

    return trainings.compile_programs(task, predict, settings, learnt, extractor, task.details)


def _trained_logits(
    trainer: Trainer, settings: ConfigDict, programs: Programs, queries: Examples, name: str, keep: bool = True
) -> Features:
    """Logits [N, D, K] of the labelled `queries` after training with these settings."""
    image_size = trainer.measurement.extractor.image_size
    content = trainings.digest_of_labels(programs.learnt)
    directory = trainings.claim(trainer.protocol, trainer.measurement, settings, programs, name, image_size, content)
    variables = _train(trainer, settings, programs, directory)
    predict = functools.partial(programs.predict, variables)
    logits = trainer.measurement.extractor.encode(queries, predict).labelled()
    if not keep and distributed.is_first():
        directory.rmtree()
    return logits


def _linear_task(extractor: FeatureExtractor, settings: ConfigDict, learnt: Examples, batch_size: int) -> Finetune:
    """The classifier alone learns. It starts at zero."""
    del settings, batch_size
    model = make_model(extractor.config, 0)
    classifier = Classifier(
        encoder=model.encoder, head=model.head, num_classes=learnt.num_classes, zero_init=True, dtype=model.dtype
    )
    return Finetune(classifier, extractor.image_size, extractor.mesh, frozen_parts=len(model.encoder.parts))


def _finetune_task(extractor: FeatureExtractor, settings: ConfigDict, learnt: Examples, batch_size: int) -> Finetune:
    model = make_model(extractor.config, 0)
    _check_head_layer(settings.head_layer, model.head)
    momentum = settings.batch_norm_momentum or max(1 - 10 * batch_size / learnt.size, 0.9)
    classifier = Classifier(
        encoder=model.encoder.clone(batch_norm_momentum=momentum),
        head=model.head,
        num_classes=learnt.num_classes,
        head_layer=settings.head_layer,
        dtype=model.dtype,
    )
    frozen = trainings.frozen_parts('finetune', settings, model.encoder)
    return Finetune(classifier, extractor.image_size, extractor.mesh, frozen_parts=frozen)


def _multihead_task(extractor: FeatureExtractor, settings: ConfigDict, learnt: Examples, batch_size: int) -> MultiHead:
    del settings, batch_size
    model = make_model(extractor.config, 0)
    classifiers = FeatureMapClassifiers(encoder=model.encoder, num_classes=learnt.num_classes, dtype=model.dtype)
    return MultiHead(classifiers, extractor.image_size, extractor.mesh)


def _check_head_layer(head_layer: int, head: ProjectionHead) -> None:
    if head_layer > head.num_layers:
        raise DataError(
            f'finetune.head_layer={head_layer}: the pretraining has a head of {head.num_layers} layers; choose at most '
            'that'
        )


def _train(trainer: Trainer, settings: ConfigDict, programs: Programs, directory: epath.Path) -> dict[str, Any]:
    """The model's variables after training on views that the host makes."""
    extractor, seed = trainer.measurement.extractor, trainer.measurement.config.seed
    policy = make_policy(extractor.image_size, views=(VIEW,), parameters=default_parameters())
    return trainings.train(
        trainer.protocol,
        trainer.measurement,
        settings,
        programs,
        directory,
        batches=lambda step: host_batches(
            programs.learnt,
            policy,
            extractor.mesh,
            batch_size=programs.batch_size,
            seed=seed,
            start_step=step,
            max_unreadable=extractor.config.data.max_unreadable,
        ),
    )
