"""The room where a configuration becomes a program: loss, task, optimiser, schedule. `networks` makes the networks."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import sharding
from simclr_jax.augment.views import MakeViews, given_views
from simclr_jax.config import ConfigError, flatten
from simclr_jax.data.feed import Feed
from simclr_jax.losses.contrastive import info_nce, margin_triplet, nt_logistic, nt_xent
from simclr_jax.models.classifier import Classifier
from simclr_jax.networks import Teacher, make_model, projection_width
from simclr_jax.sharding import DATA_AXIS
from simclr_jax.tasks.disco import Disco
from simclr_jax.tasks.distill import Distill
from simclr_jax.tasks.memory import TEACHER, MomentumMemory
from simclr_jax.tasks.simclr import Contrast, Pretrain
from simclr_jax.training import optim
from simclr_jax.training.schedule import (
    Schedule,
    peak_learning_rate,
    steps_of_epochs,
    total_steps,
    warmup_cosine,
    warmup_steps,
)
from simclr_jax.training.state import TrainState
from simclr_jax.training.step import abstract_state, init_state, make_train_step, state_shardings
from simclr_jax.training.task import Step

PretrainingTask = Pretrain | Disco | Distill

# The step of a state is an int32.
MOST_STEPS = 2**31 - 1


def _nt_xent(loss: ConfigDict) -> Contrast:
    return lambda z, keys, queue: nt_xent(
        z,
        temperature=loss.temperature,
        normalize=loss.normalize,
        axis_name=DATA_AXIS,
        block_size=loss.block_size or None,
        queue=queue,
    )


def _nt_logistic(loss: ConfigDict) -> Contrast:
    settings = {'temperature': loss.temperature, 'semi_hard': loss.semi_hard, 'normalize': loss.normalize}
    return lambda z, keys, queue: nt_logistic(z, **settings, axis_name=DATA_AXIS)


def _margin_triplet(loss: ConfigDict) -> Contrast:
    settings = {'margin': loss.margin, 'semi_hard': loss.semi_hard, 'normalize': loss.normalize}
    return lambda z, keys, queue: margin_triplet(z, **settings, axis_name=DATA_AXIS)


def _info_nce(loss: ConfigDict) -> Contrast:
    def contrast(z, keys, queue):
        assert keys is not None, 'InfoNCE needs a momentum encoder'
        return info_nce(z, keys, queue, temperature=loss.temperature, in_batch=loss.in_batch, axis_name=DATA_AXIS)

    return contrast


# Loss by config.loss.name, a function of the group config.loss.
LOSSES: dict[str, Callable[[ConfigDict], Contrast]] = {
    'nt_xent': _nt_xent,
    'nt_logistic': _nt_logistic,
    'margin_triplet': _margin_triplet,
    'info_nce': _info_nce,
}


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything of a pretraining that is compiled.

    Attributes:
        task: Task that is learnt.
        mesh: Devices that train.
        feed: Way of the images into the step.
        shardings: Sharding of each array of the state, see `step.state_shardings`.
        state: Shape, dtype and sharding of each array of the state.
        init: Function of a key that gives the state at step 0, without constant frozen parts.
        step: Training step, see `step.make_train_step`.
        memory: Momentum encoder and queue. None: there are none.
    """

    task: PretrainingTask
    mesh: Mesh
    feed: Feed
    shardings: TrainState
    state: TrainState
    init: Callable[[jax.Array], TrainState]
    step: Step
    memory: MomentumMemory | None = None

    def abstract_arguments(self) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct], jax.Array]:
        """Shapes and shardings of the step's arguments, to compile it without data or device memory."""
        mesh = self.mesh
        key = jax.eval_shape(jax.random.key, 0)
        return (
            self.state,
            sharding.placed(self.feed.batch, sharding.by_rows(mesh)),
            sharding.placed(key, sharding.replicated(mesh)),
        )


def make_loss(config: ConfigDict) -> Contrast:
    """The contrastive loss that a configuration describes.

    Returns:
        A function of projections, keys and queue. It is called inside a shard_map over DATA_AXIS, whose other members'
        projections it gathers.
    """
    contrast = LOSSES[config.loss.name](config.loss)
    if config.loss.name != 'info_nce':
        return contrast
    # The student of DisCo sees the keys' view too, for the sake of the teacher alone.
    queries = _number_of_queries(config)
    return lambda z, keys, queue: contrast(z[:, :queries], keys, queue)


def _number_of_queries(config: ConfigDict) -> int:
    """Views that InfoNCE compares with the keys. The last view is that of the keys."""
    return len(config.augment.views) - 1


def _makes_keys(config: ConfigDict) -> bool:
    """Whether a momentum encoder makes keys."""
    return config.task != 'distill' and (config.loss.queue_size > 0 or config.loss.name == 'info_nce')


def make_memory(config: ConfigDict, mesh: Mesh) -> MomentumMemory | None:
    """The momentum encoder and the queue that a configuration describes. None: it needs none."""
    if not _makes_keys(config):
        return None
    return MomentumMemory(config.loss.momentum, config.loss.queue_size, projection_width(config), mesh)


def make_task(
    config: ConfigDict,
    num_classes: int,
    mesh: Mesh,
    make_views: MakeViews = given_views,
    teacher: Teacher | None = None,
) -> PretrainingTask:
    """The task that a configuration describes.

    Args:
        config: Checked configuration of a pretraining.
        num_classes: Classes of the training images. 0 leaves the probe out.
        mesh: Devices that train.
        make_views: The devices' part of the augmentation, see `data.feed.Feed`.
        teacher: Network that a student learns from. The task 'simclr' has none.
    """
    return TASKS[config.task](config, num_classes, mesh, make_views, teacher)


def _pretrain(config: ConfigDict, num_classes: int, mesh: Mesh, make_views: MakeViews, _: Teacher | None) -> Pretrain:
    is_query = config.loss.name == 'info_nce'
    return Pretrain(
        model=make_model(config, num_classes),
        contrast=make_loss(config),
        loss_scale=config.loss_scale,
        image_size=config.data.image_size,
        mesh=mesh,
        block_size=config.loss.block_size or None,
        make_views=make_views,
        makes_keys=_makes_keys(config),
        encoded_views=_number_of_queries(config) if is_query else None,
    )


def _disco(config: ConfigDict, num_classes: int, mesh: Mesh, make_views: MakeViews, teacher: Teacher | None) -> Disco:
    assert teacher is not None, 'DisCo needs a teacher'
    student = _pretrain(config, num_classes, mesh, given_views, None)
    return Disco(
        student=dataclasses.replace(student, encoded_views=None),
        teacher=teacher.projector(),
        weight=config.disco.weight,
        make_views=make_views,
    )


def _distill(
    config: ConfigDict, num_classes: int, mesh: Mesh, make_views: MakeViews, teacher: Teacher | None
) -> Distill:
    assert teacher is not None, 'distillation needs a teacher'
    model = make_model(config, 0)
    settings = config.distill
    return Distill(
        student=Classifier(model.encoder, model.head, teacher.num_classes, dtype=model.dtype),
        teacher=teacher.classifier(),
        alpha=settings.alpha,
        temperature=settings.temperature,
        tau_squared=settings.tau_squared,
        divisor=settings.divisor,
        image_size=config.data.image_size,
        mesh=mesh,
        make_views=make_views,
        measures_accuracy=num_classes == teacher.num_classes,
    )


# Task by config.task.
TASKS: dict[str, Callable[..., PretrainingTask]] = {'simclr': _pretrain, 'distill': _distill, 'disco': _disco}


def make_optimizer(config: ConfigDict, schedule: Schedule) -> optax.GradientTransformation:
    """The optimiser that a configuration describes."""
    return optim.make_optimizer(
        config.optimizer.name,
        schedule.learning_rate,
        weight_decay=config.optimizer.weight_decay,
        momentum=config.optimizer.momentum,
    )


def _check_lengths(config: ConfigDict, num_examples: int) -> None:
    """Raises ConfigError for lengths of more than MOST_STEPS steps."""
    fields: dict[str, Any] = flatten(config)
    steps = {name: fields[name] for name in ('train_steps', 'checkpoint_every_steps', 'log_every_steps')}
    for name in ('train_epochs', 'warmup_epochs', 'checkpoint_every_epochs', 'knn.every_epochs'):
        steps[name] = fields[name] / config.batch_size * num_examples
    problems = [
        f'{name}={fields[name]}: is more than {MOST_STEPS:,} steps; choose less'
        for name, count in steps.items()
        if count > MOST_STEPS
    ]
    if problems:
        raise ConfigError(problems)


def make_schedule(config: ConfigDict, num_examples: int) -> Schedule:
    """Lengths and learning rates of a run.

    Args:
        config: Checked configuration of a pretraining.
        num_examples: Images of the training split.

    Raises:
        ConfigError: The warm-up leaves no step for training, or a length is above MOST_STEPS.
    """
    batch_size, epochs = config.batch_size, config.train_epochs
    _check_lengths(config, num_examples)
    total = config.train_steps or total_steps(num_examples, epochs, batch_size)
    warmup = warmup_steps(num_examples, config.warmup_epochs, batch_size)
    if warmup >= total and not config.train_steps:
        raise ConfigError(
            [f'warmup_epochs={config.warmup_epochs}: must be below train_epochs={epochs}; the whole run is warm-up']
        )
    peak = peak_learning_rate(config.optimizer.learning_rate, batch_size, config.optimizer.scaling)
    interval = functools.partial(steps_of_epochs, num_examples=num_examples, batch_size=batch_size)
    return Schedule(
        total_steps=total,
        epoch_steps=num_examples / batch_size,
        log_every=config.log_every_steps,
        checkpoint_every=config.checkpoint_every_steps or interval(config.checkpoint_every_epochs),
        evaluate_every=interval(config.knn.every_epochs) if config.knn.every_epochs else 0,
        learning_rate=warmup_cosine(peak, total, warmup),
        checkpoint_minutes=config.checkpoint_every_minutes,
    )


def check_batch(config: ConfigDict, num_devices: int) -> None:
    """Raises ConfigError unless batch and microbatch divide by the number of devices."""
    problems = sharding.check_batch_size(config.batch_size, num_devices)
    if config.microbatch:
        problems += sharding.check_batch_size(config.microbatch, num_devices, 'microbatch')
    if problems:
        raise ConfigError(problems)


def make_program(
    config: ConfigDict, num_classes: int, schedule: Schedule, mesh: Mesh, feed: Feed, teacher: Teacher | None = None
) -> Program:
    """The program that a configuration describes.

    Args:
        config: Checked configuration of a pretraining.
        num_classes: Classes of the training images. 0 leaves the probe out.
        schedule: Schedule of the run, see `make_schedule`.
        mesh: Devices that train. Only their number and kind matter: they may be those of a topology.
        feed: Way of the images into the step, see `data.feed`.
        teacher: Network that a student learns from. The task 'simclr' has none.

    Raises:
        ConfigError: Batch or microbatch does not divide by the number of devices.
    """
    check_batch(config, mesh.size)
    task = make_task(config, num_classes, mesh, feed.make_views, teacher)
    tx, memory = make_optimizer(config, schedule), make_memory(config, mesh)
    state = abstract_state(task, tx, memory, {TEACHER: teacher.shapes(config.task)} if teacher else None)
    shardings = state_shardings(state, mesh, config.sharding)
    microbatches = config.batch_size // (config.microbatch or config.batch_size)
    return Program(
        task=task,
        mesh=mesh,
        feed=feed,
        shardings=shardings,
        state=sharding.placed(state, shardings),
        init=functools.partial(init_state, task, tx, mesh=mesh, shardings=shardings, memory=memory),
        step=make_train_step(task, tx, mesh, shardings=shardings, microbatches=microbatches, memory=memory),
        memory=memory,
    )
