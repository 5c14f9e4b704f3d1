"""Protocols that train on augmented images: linear evaluation by SGD, fine-tuning, the multi-head linear probe.

Each training has a directory of its own in the work directory, trained/NAME/, with settings, metrics and checkpoints
as a pretraining has them; the same evaluation again goes on where it stopped.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import distributed
from simclr_jax.augment.policy import default_parameters, make_policy
from simclr_jax.build import make_model
from simclr_jax.config.label_budget import Labels
from simclr_jax.data.spec import DataError, Examples, Share
from simclr_jax.evaluation.datasets import Dataset
from simclr_jax.evaluation.extractor import FeatureExtractor
from simclr_jax.evaluation.features import Features
from simclr_jax.evaluation.results import Score, grade
from simclr_jax.models.classifier import Classifier, FeatureMapClassifiers
from simclr_jax.models.heads import ProjectionHead
from simclr_jax.sharding import replicated
from simclr_jax.tasks.finetune import Finetune, init_from
from simclr_jax.tasks.multihead import MultiHead
from simclr_jax.training import loop, optim, workdir
from simclr_jax.training.checkpoints import Checkpoints, abstract
from simclr_jax.training.log import Log
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
from simclr_jax.training.task import Step

# What SimCLR augments with in all supervised training (2002.05709, appendix B.5 to B.8).
VIEW = 'crop flip'
CHECKPOINTS_A_TRAINING = 10
FEATURE_MAPS = 5


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Everything that the trainings of one protocol share.

    Attributes:
        protocol: 'linear_sgd', 'finetune' or 'multihead'.
        encoder: where they start from.
        dataset: what they learn.
        config: of the evaluation.
        directory: of the work directory's trainings.
    """

    protocol: str
    encoder: FeatureExtractor
    dataset: Dataset
    config: ConfigDict
    directory: epath.Path

    @property
    def settings(self) -> ConfigDict:
        """The protocol's group of the configuration."""
        return self.config[self.protocol]


def evaluate_trained(
    protocol: str, encoder: FeatureExtractor, dataset: Dataset, labels: Labels, config: ConfigDict, directory: str
) -> list[Score]:
    """Trains with so many labels, and scores what came out on the test images.

    Args:
        protocol: 'linear_sgd', 'finetune' or 'multihead'.
        encoder: where training starts; not the pixels.
        dataset: labelled.
        labels: how many may be learnt from.
        config: of the evaluation.
        directory: the work directory.

    Raises:
        DataError: the protocol cannot be applied to this data set.
    """
    trainer = Trainer(protocol, encoder, dataset, config, epath.Path(directory) / 'trained')
    if protocol == 'multihead' and dataset.train.is_multi_label:
        raise DataError(f'multihead needs one label an image, {dataset.name} has several; use svm there')
    name = f'{encoder.name} {dataset.name} {labels}'
    settings = trainer.settings
    if protocol == 'finetune' and settings.grid_learning_rates:
        settings = _best_of_grid(trainer, labels, name)
    learnt = dataset.learnt_with(labels, config.seed)
    logits = _trained_logits(trainer, settings, _compile(trainer, learnt), dataset.test, name)
    found = {'': logits.values}
    if protocol == 'multihead':
        found = {f'feature{number + 1}': logits.values[:, number] for number in range(FEATURE_MAPS)}
    return [
        Score(
            *(dataset.name, protocol, detail, str(labels), dataset.metric, encoder.name),
            **grade(dataset.metric, [values], logits.labels, config),
        )
        for detail, values in found.items()
    ]


def _best_of_grid(trainer: Trainer, labels: Labels, name: str) -> ConfigDict:
    """The settings with the learning rate and weight decay that do best on validation images."""
    learnt, held_out = trainer.dataset.divided(labels, trainer.config.validation_share, trainer.config.seed)
    programs = _compile(trainer, learnt)
    best, best_score = None, -np.inf
    for rate in trainer.settings.grid_learning_rates:
        for decay in trainer.settings.grid_weight_decays:
            settings = trainer.settings.copy_and_resolve_references()
            with settings.unlocked():
                settings.update(learning_rate=rate, weight_decay=decay / rate)
            logits = _trained_logits(trainer, settings, programs, held_out, f'{name} grid', keep=False)
            score = grade(trainer.dataset.metric, [logits.values], logits.labels, None)['value']
            if score > best_score:
                best, best_score = settings, score
    return best


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled part of a training, the same for every learning rate and weight decay.

    Attributes:
        learnt: images to learn from.
        batch_size: of them at a time.
        init: (key, pretrained, peak learning rate, weight decay) -> state.
        step: see step.make_train_step.
        predict: (variables, images [N, H, W, 3]) -> logits [N, K], or [N, 5, K] of the multi-head probe.
    """

    learnt: Examples
    batch_size: int
    init: Callable[..., TrainState]
    step: Step
    predict: Callable[[Any, jax.Array], jax.Array]


def _compile(trainer: Trainer, learnt: Examples) -> Programs:
    settings, mesh = trainer.settings, trainer.encoder.mesh
    task = _make_task(trainer, learnt)
    batch_size = _batch_size(settings, learnt, trainer.encoder)
    make_rate = _learning_rate(trainer.protocol, settings, learnt.size, batch_size)

    # Both as part of the optimiser's state: as constants each pair would be a program of its own.
    @optax.inject_hyperparams
    def make_optimizer(peak, weight_decay):
        return optim.make_optimizer(
            settings.optimizer, make_rate(peak), weight_decay=weight_decay, momentum=settings.momentum
        )

    tx = optim.freeze(make_optimizer(peak=0.0, weight_decay=0.0), task.is_frozen)

    def init(key, pretrained, peak, weight_decay):
        state = init_from(pretrained, task, tx, key)
        settings = {'peak': jnp.float32(peak), 'weight_decay': jnp.float32(weight_decay)}
        return state.replace(opt_state=optax.tree.set(state.opt_state, **settings))

    def predict(variables, images):
        logits = task.predict(variables, images)
        return jnp.stack(list(logits.values()), axis=1) if isinstance(logits, dict) else logits

    return Programs(
        learnt=learnt,
        batch_size=batch_size,
        init=jax.jit(init, out_shardings=replicated(mesh)),
        step=make_train_step(task, tx, mesh),
        predict=jax.jit(predict),
    )


def _trained_logits(
    trainer: Trainer, settings: ConfigDict, programs: Programs, queries: Examples, name: str, keep: bool = True
) -> Features:
    """Logits of the labelled `queries` after training with these settings."""
    directory = _claim(trainer, settings, programs, name)
    variables = _train(trainer, settings, programs, directory)
    logits = trainer.encoder.encode(queries, functools.partial(programs.predict, variables)).labelled()
    if not keep and distributed.is_first():
        directory.rmtree()
    return logits


def _make_task(trainer: Trainer, learnt: Examples) -> Finetune | MultiHead:
    """The task of a protocol on an encoder."""
    encoder, settings = trainer.encoder, trainer.settings
    model = make_model(encoder.config, 0)
    if trainer.protocol == 'multihead':
        classifiers = FeatureMapClassifiers(encoder=model.encoder, num_classes=learnt.num_classes, dtype=model.dtype)
        return MultiHead(classifiers, encoder.image_size, encoder.mesh)
    is_linear = trainer.protocol == 'linear_sgd'
    head_layer = 0 if is_linear else settings.head_layer
    _check_head_layer(head_layer, model.head)
    network = model.encoder
    if not is_linear:
        batch_size = _batch_size(settings, learnt, encoder)
        momentum = settings.batch_norm_momentum or max(1 - 10 * batch_size / learnt.size, 0.9)
        network = network.clone(batch_norm_momentum=momentum)
    return Finetune(
        model=Classifier(
            encoder=network,
            head=model.head,
            num_classes=learnt.num_classes,
            head_layer=head_layer,
            zero_init=is_linear,
            dtype=model.dtype,
        ),
        image_size=encoder.image_size,
        mesh=encoder.mesh,
        train_after_block=4 if is_linear else settings.after_block,
    )


def _check_head_layer(head_layer: int, head: ProjectionHead) -> None:
    layers = {'none': 0, 'linear': 1}.get(head.kind, head.layers)
    if head_layer > layers:
        raise DataError(
            f'finetune.head_layer={head_layer}: the pretraining has a head of {layers} layers; at most that'
        )


def _batch_size(settings: ConfigDict, learnt: Examples, encoder: FeatureExtractor) -> int:
    devices = encoder.mesh.size
    return max(min(settings.batch_size, learnt.size) // devices, 1) * devices


def _learning_rate(
    protocol: str, settings: ConfigDict, num_examples: int, batch_size: int
) -> Callable[[float | jax.Array], optax.Schedule]:
    """From the peak to the schedule."""
    if protocol == 'multihead':
        milestones = [steps_of_epochs(epoch, num_examples, batch_size) for epoch in settings.milestones]
        return functools.partial(step_decay, milestones=milestones)
    total = _total_steps(settings, num_examples, batch_size)
    warmup = min(warmup_steps(num_examples, settings.warmup_epochs, batch_size), total - 1)
    return functools.partial(warmup_cosine, total_steps=total, warmup_steps=warmup)


def _total_steps(settings: ConfigDict, num_examples: int, batch_size: int) -> int:
    return settings.steps or total_steps(num_examples, settings.epochs, batch_size)


def _claim(trainer: Trainer, settings: ConfigDict, programs: Programs, name: str) -> epath.Path:
    """The directory of just this training; another encoder, data set or setting has another one."""
    identity = {
        'protocol': trainer.protocol,
        'of': name,
        'encoder': trainer.encoder.identity,
        'images': f'{programs.learnt.name} ({programs.learnt.size})',
        'image_size': trainer.encoder.image_size,
        'batch_size': programs.batch_size,
        'seed': trainer.config.seed,
        'settings': settings.to_dict(),
    }
    text = json.dumps(identity, indent=2) + '\n'
    plain = ''.join(letter if letter.isalnum() or letter in '.-%' else '_' for letter in name)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    directory = trainer.directory / f'{trainer.protocol}-{plain}-{digest}'
    if distributed.is_first():
        directory.mkdir(parents=True, exist_ok=True)
        workdir.write_whole(directory / 'settings.json', text)
    return directory


def _train(trainer: Trainer, settings: ConfigDict, programs: Programs, directory: epath.Path) -> dict[str, Any]:
    """The model's variables after training, or after the rest of it."""
    mesh, learnt, batch_size = trainer.encoder.mesh, programs.learnt, programs.batch_size
    peak = peak_learning_rate(settings.learning_rate, batch_size, settings.scaling)
    total = _total_steps(settings, learnt.size, batch_size)
    interval = -(-total // CHECKPOINTS_A_TRAINING)
    init_key, step_key = jax.random.split(jax.random.key(trainer.config.seed))
    log = Log(str(directory), total, tensorboard=True)
    log.say(f'{trainer.protocol}: {learnt.name}, {learnt.size:,} images, {total:,} steps; {directory}')
    checkpoints = Checkpoints(str(directory), keep=1, say=log.say)
    with contextlib.closing(log), contextlib.closing(checkpoints):
        state = programs.init(init_key, trainer.encoder.variables, peak, settings.weight_decay)
        if checkpoints.latest_step() is not None:
            state = checkpoints.restore(abstract(state))
            log.say(f'Resuming at step {int(state.step)}.')
        log.resume(int(state.step))
        state = loop.train(
            state,
            programs.step,
            functools.partial(_batches, trainer, learnt, batch_size),
            schedule=Schedule(
                total_steps=total,
                epoch_steps=learnt.size / batch_size,
                log_every=interval,
                checkpoint_every=interval,
                evaluate_every=0,
                learning_rate=_learning_rate(trainer.protocol, settings, learnt.size, batch_size)(peak),
            ),
            mesh=mesh,
            key=step_key,
            checkpoints=checkpoints,
            log=log,
        )
    return {'params': state.params, 'batch_stats': state.batch_stats}


def _batches(trainer: Trainer, learnt: Examples, batch_size: int, start_step: int):
    from simclr_jax.data.pipeline import TrainBatches

    size = trainer.encoder.image_size
    return TrainBatches(
        learnt,
        make_policy(size, shared='', views=(VIEW,), parameters=default_parameters()),
        batch_size=batch_size,
        seed=trainer.config.seed,
        start_step=start_step,
        share=Share(jax.process_index(), jax.process_count()),
        max_unreadable=trainer.encoder.config.data.max_unreadable,
    )
