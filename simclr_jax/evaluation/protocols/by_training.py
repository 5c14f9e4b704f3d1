"""Protocols that train on augmented images: linear evaluation by SGD, fine-tuning, the multi-head linear probe.

Each training has its own directory in the work directory, trained/NAME/, with settings, metrics and checkpoints. The
same evaluation again resumes it.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import distributed, sharding
from simclr_jax.augment.policy import default_parameters, make_policy
from simclr_jax.build import make_model
from simclr_jax.config.whole_file import write_whole
from simclr_jax.data.feed import host_batches
from simclr_jax.data.spec import DataError, Examples
from simclr_jax.evaluation.extractor import FeatureExtractor
from simclr_jax.evaluation.features import Features
from simclr_jax.evaluation.protocols.measurement import Measurement
from simclr_jax.evaluation.results import Score, grade
from simclr_jax.models.classifier import Classifier, FeatureMapClassifiers
from simclr_jax.models.heads import ProjectionHead
from simclr_jax.tasks.finetune import Finetune, init_from
from simclr_jax.tasks.multihead import MultiHead
from simclr_jax.training import optim
from simclr_jax.training.loop import Training
from simclr_jax.training.run import start_or_resume
from simclr_jax.training.schedule import (
    Schedule,
    peak_learning_rate,
    step_decay,
    steps_of_epochs,
    total_steps,
    warmup_cosine,
    warmup_steps,
)
from simclr_jax.training.state import TrainState
from simclr_jax.training.step import make_train_step
from simclr_jax.training.task import Step, Task

# SimCLR's augmentation in all supervised training (arXiv 2002.05709, appendix B.5 to B.8).
VIEW = 'crop flip'
CHECKPOINTS_PER_TRAINING = 10

# Bytes of a training's name in the name of its directory.
LONGEST_NAME = 120


class SupervisedTask(Task, Protocol):
    """A task whose predictions are scored.

    Attributes:
        details: Names of its predictions in the results. A single prediction is called ''.
    """

    @property
    def details(self) -> tuple[str, ...]: ...  # noqa: D102

    def is_frozen(self, path: tuple[str, ...]) -> bool: ...  # noqa: D102

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


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled part of a training, the same for every learning rate and weight decay.

    Attributes:
        learnt: Images to learn from.
        batch_size: Images per batch.
        init: Function (key, pretrained variables, peak learning rate, weight decay) -> state at step 0.
        step: Training step, see `step.make_train_step`.
        predict: Function (variables, images [N, H, W, 3]) -> logits [N, D, K] of the D predictions.
        details: Names of the D predictions.
    """

    learnt: Examples
    batch_size: int
    init: Callable[..., TrainState]
    step: Step
    predict: Callable[[Any, jax.Array], jax.Array]
    details: tuple[str, ...]


def _compile(trainer: Trainer, learnt: Examples) -> Programs:
    extractor, settings = trainer.measurement.extractor, trainer.measurement.config[trainer.protocol]
    batch_size = _batch_size(settings, learnt, extractor)
    task = trainer.make_task(extractor, settings, learnt, batch_size)
    make_rate = _learning_rate(settings, learnt.size, batch_size)

    # Both are part of the optimiser's state. As constants, each pair of values would be compiled separately.
    @optax.inject_hyperparams
    def make_optimizer(peak, weight_decay):
        return optim.make_optimizer(
            settings.optimizer, make_rate(peak), weight_decay=weight_decay, momentum=settings.momentum
        )

    tx = optim.freeze(make_optimizer(peak=0.0, weight_decay=0.0), task.is_frozen)

    def init(key, pretrained, peak, weight_decay):
        state = init_from(pretrained, task, tx, key)
        hyperparameters = {'peak': jnp.float32(peak), 'weight_decay': jnp.float32(weight_decay)}
        return state.replace(opt_state=optax.tree.set(state.opt_state, **hyperparameters))

    def predict(variables, images):
        logits = task.predict(variables, images)
        return jnp.stack(list(logits.values()), axis=1) if isinstance(logits, dict) else logits[:, None]

    return Programs(
        learnt=learnt,
        batch_size=batch_size,
        init=jax.jit(init, out_shardings=sharding.replicated(extractor.mesh)),
        step=make_train_step(task, tx, extractor.mesh),
        predict=jax.jit(predict),
        details=task.details,
    )


def _trained_logits(
    trainer: Trainer, settings: ConfigDict, programs: Programs, queries: Examples, name: str, keep: bool = True
) -> Features:
    """Logits [N, D, K] of the labelled `queries` after training with these settings."""
    directory = _claim(trainer, settings, programs, name)
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
    return Finetune(classifier, extractor.image_size, extractor.mesh, train_after_block=4)


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
    return Finetune(classifier, extractor.image_size, extractor.mesh, train_after_block=settings.after_block)


def _multihead_task(extractor: FeatureExtractor, settings: ConfigDict, learnt: Examples, batch_size: int) -> MultiHead:
    del settings, batch_size
    model = make_model(extractor.config, 0)
    classifiers = FeatureMapClassifiers(encoder=model.encoder, num_classes=learnt.num_classes, dtype=model.dtype)
    return MultiHead(classifiers, extractor.image_size, extractor.mesh)


def _check_head_layer(head_layer: int, head: ProjectionHead) -> None:
    layers = {'none': 0, 'linear': 1}.get(head.kind, head.layers)
    if head_layer > layers:
        raise DataError(
            f'finetune.head_layer={head_layer}: the pretraining has a head of {layers} layers; choose at most that'
        )


def _batch_size(settings: ConfigDict, learnt: Examples, extractor: FeatureExtractor) -> int:
    devices = extractor.mesh.size
    return max(min(settings.batch_size, learnt.size) // devices, 1) * devices


def _learning_rate(
    settings: ConfigDict, num_examples: int, batch_size: int
) -> Callable[[float | jax.Array], optax.Schedule]:
    """The function from the peak to the schedule: step decay if the settings have `milestones`, otherwise a cosine."""
    if 'milestones' in settings:
        milestones = [steps_of_epochs(epoch, num_examples, batch_size) for epoch in settings.milestones]
        return functools.partial(step_decay, milestones=milestones)
    total = _total_steps(settings, num_examples, batch_size)
    warmup = min(warmup_steps(num_examples, settings.warmup_epochs, batch_size), total - 1)
    return functools.partial(warmup_cosine, total_steps=total, warmup_steps=warmup)


def _total_steps(settings: ConfigDict, num_examples: int, batch_size: int) -> int:
    return settings.steps or total_steps(num_examples, settings.epochs, batch_size)


def _claim(trainer: Trainer, settings: ConfigDict, programs: Programs, name: str) -> epath.Path:
    """Makes the directory of this training. Another encoder, data set or setting has another directory."""
    measurement = trainer.measurement
    identity = {
        'protocol': trainer.protocol,
        'of': name,
        'encoder': measurement.extractor.identity,
        'images': f'{programs.learnt.name} ({programs.learnt.size})',
        'image_size': measurement.extractor.image_size,
        'batch_size': programs.batch_size,
        'seed': measurement.config.seed,
        'settings': settings.to_dict(),
    }
    text = json.dumps(identity, indent=2) + '\n'
    plain = ''.join(letter if letter.isalnum() or letter in '.-%' else '_' for letter in name)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    # File systems allow names of 255 bytes. The name may be a path, whose end says most.
    plain = plain.encode()[-LONGEST_NAME:].decode(errors='ignore')
    directory = epath.Path(measurement.directory) / 'trained' / f'{trainer.protocol}-{plain}-{digest}'
    if distributed.is_first():
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / 'settings.json', text)
    return directory


def _train(trainer: Trainer, settings: ConfigDict, programs: Programs, directory: epath.Path) -> dict[str, Any]:
    """The model's variables after training. An interrupted training resumes."""
    extractor, seed = trainer.measurement.extractor, trainer.measurement.config.seed
    learnt, batch_size = programs.learnt, programs.batch_size
    peak = peak_learning_rate(settings.learning_rate, batch_size, settings.scaling)
    total = _total_steps(settings, learnt.size, batch_size)
    interval = -(-total // CHECKPOINTS_PER_TRAINING)
    init_key, step_key = jax.random.split(jax.random.key(seed))
    start = init_key, extractor.variables, peak, settings.weight_decay
    policy = make_policy(extractor.image_size, views=(VIEW,), parameters=default_parameters())
    training = Training(
        step=programs.step,
        batches=lambda step: host_batches(
            learnt,
            policy,
            extractor.mesh,
            batch_size=batch_size,
            seed=seed,
            start_step=step,
            max_unreadable=extractor.config.data.max_unreadable,
        ),
        schedule=Schedule(
            total_steps=total,
            epoch_steps=learnt.size / batch_size,
            log_every=interval,
            checkpoint_every=interval,
            evaluate_every=0,
            learning_rate=_learning_rate(settings, learnt.size, batch_size)(peak),
        ),
        mesh=extractor.mesh,
        key=step_key,
    )
    introduction = f'{trainer.protocol}: {learnt.name}, {learnt.size:,} images, {total:,} steps; {directory}'
    state = start_or_resume(
        str(directory),
        sharding.placed(jax.eval_shape(programs.init, *start), sharding.replicated(extractor.mesh)),
        lambda _: programs.init(*start),
        training,
        introduce=lambda say: say(introduction),
    )
    return {'params': state.params, 'batch_stats': state.batch_stats}
