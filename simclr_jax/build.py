"""What is compiled for a pretraining, and its lengths: from the configuration, without any data."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import sharding
from simclr_jax.augment.views import MakeViews, given_views
from simclr_jax.config import ConfigError
from simclr_jax.data.feed import make_views, training_policy
from simclr_jax.losses.contrastive import margin_triplet, nt_logistic, nt_xent
from simclr_jax.models.heads import ProjectionHead
from simclr_jax.models.resnet import ResNet
from simclr_jax.models.simclr import SimCLR
from simclr_jax.sharding import DATA_AXIS
from simclr_jax.tasks.simclr import Pretrain
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
from simclr_jax.training.step import abstract_state, make_train_step, several_steps, state_shardings
from simclr_jax.training.task import Step


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled for a pretraining.

    Attributes:
        task: what is learnt.
        tx: the optimiser.
        shardings: where the state's arrays lie, see step.state_shardings.
        step: see step.make_train_step.
        run: what a run calls: the step, or several at once (step.several_steps) where the schedule says so.
        feed: host, hybrid or resident.
    """

    task: Pretrain
    tx: optax.GradientTransformation
    shardings: TrainState
    step: Step
    run: Step
    feed: str

    def abstract_arguments(self, config: ConfigDict) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct], jax.Array]:
        """Shapes and shardings of the step's arguments, for compiling it without any data or device memory."""

        def placed(leaf, place):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

        mesh = self.task.mesh
        state = jax.tree.map(placed, abstract_state(self.task, self.tx), self.shardings)
        images, size = config.batch_size, config.data.image_size
        views = images, len(config.augment.views), size, size, 3
        rows = {
            **{
                'host': {'views': (views, jnp.float32)},
                'hybrid': {'views': (views, jnp.uint8)},
                # How large they are, the data would say.
                'resident': {'images': ((images, size, size, 3), jnp.uint8)},
            }[self.feed],
            'label': ((images,), jnp.int32),
            'mask': ((images,), jnp.float32),
            'index': ((images,), jnp.int32),
        }
        batch = {name: jax.ShapeDtypeStruct(*row, sharding=sharding.by_rows(mesh)) for name, row in rows.items()}
        key = jax.eval_shape(jax.random.key, 0)
        return state, batch, placed(key, sharding.replicated(mesh))


def make_program(config: ConfigDict, num_classes: int, schedule: Schedule, mesh: Mesh, feed: str = 'host') -> Program:
    """The training step that a configuration describes.

    Args:
        config: checked.
        num_classes: of the probe; 0: there is none.
        schedule: as of `make_schedule`.
        mesh: the devices; only their number and kind matter, so that they may be those of a topology.
        feed: host, hybrid or resident, see `feeding`.

    Raises:
        ConfigError: batch or microbatch cannot be divided among the devices.
    """
    problems = sharding.check_batch_size(config.batch_size, mesh.size)
    if config.microbatch:
        problems += sharding.check_batch_size(config.microbatch, mesh.size, 'microbatch')
    if problems:
        raise ConfigError(problems)
    task = make_task(config, num_classes, mesh, make_views(feed, training_policy(config)))
    tx = optim.make_optimizer(
        config.optimizer.name,
        schedule.learning_rate,
        weight_decay=config.optimizer.weight_decay,
        momentum=config.optimizer.momentum,
    )
    shardings = state_shardings(task, tx, mesh, config.sharding)
    microbatches = config.batch_size // (config.microbatch or config.batch_size)
    step = make_train_step(task, tx, mesh, shardings=shardings, microbatches=microbatches)
    run = several_steps(step, mesh, shardings) if schedule.steps_per_dispatch > 1 else step
    return Program(task, tx, shardings, step, run, feed)


def make_schedule(config: ConfigDict, num_examples: int) -> Schedule:
    """Lengths and learning rates of a run on so many images.

    Raises:
        ConfigError: the warm-up leaves no step for training.
    """
    batch_size, epochs = config.batch_size, config.train_epochs
    total = config.train_steps or total_steps(num_examples, epochs, batch_size)
    warmup = warmup_steps(num_examples, config.warmup_epochs, batch_size)
    if warmup >= total and not config.train_steps:
        raise ConfigError(
            [f'warmup_epochs={config.warmup_epochs}: must be below train_epochs={epochs}, all of it is warm-up']
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
    )


# The stem without stride is for images up to this size, pixels.
CIFAR_STEM_UP_TO = 32


def make_model(config: ConfigDict, num_classes: int) -> SimCLR:
    """The model that a configuration describes; `num_classes` 0 leaves the probe out."""
    dtype = jnp.dtype(config.model.dtype)
    stem = config.model.stem
    if stem == 'auto':
        stem = 'cifar' if config.data.image_size <= CIFAR_STEM_UP_TO else 'imagenet'
    encoder = ResNet(
        depth=config.model.depth,
        width=config.model.width,
        stem=stem,
        sk_ratio=config.model.sk_ratio,
        se_ratio=config.model.se_ratio,
        dtype=dtype,
        remat=config.model.remat,
    )
    head = ProjectionHead(
        kind=config.head.kind,
        layers=config.head.layers,
        out_dim=config.head.out_dim,
        hidden_dim=config.head.hidden_dim or None,
        dtype=dtype,
    )
    return SimCLR(encoder=encoder, head=head, num_classes=num_classes if config.probe else 0, dtype=dtype)


def make_task(config: ConfigDict, num_classes: int, mesh: Mesh, make_views: MakeViews = given_views) -> Pretrain:
    """The pretraining task that a configuration describes, on data with so many classes (0: none).

    Args:
        config: of the pretraining.
        num_classes: of the probe.
        mesh: the devices.
        make_views: see Pretrain.
    """
    loss, block_size = config.loss, config.loss.block_size or None
    if loss.name == 'nt_xent':
        contrast = functools.partial(nt_xent, temperature=loss.temperature, block_size=block_size)
    elif loss.name == 'nt_logistic':
        contrast = functools.partial(nt_logistic, temperature=loss.temperature, semi_hard=loss.semi_hard)
    else:
        contrast = functools.partial(margin_triplet, margin=loss.margin, semi_hard=loss.semi_hard)
    return Pretrain(
        model=make_model(config, num_classes),
        contrast=functools.partial(contrast, normalize=loss.normalize, axis_name=DATA_AXIS),
        loss_scale=config.loss_scale,
        image_size=config.data.image_size,
        mesh=mesh,
        block_size=block_size,
        make_views=make_views,
    )
