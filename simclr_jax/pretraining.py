"""A pretraining run from its configuration: puts data, task, optimiser and loop together."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import lengths, loop, optim, parallel, processes, workdir
from simclr_jax.augment.policy import OPERATIONS, Policy, make_policy
from simclr_jax.checkpoints import CheckpointError, Checkpoints, abstract
from simclr_jax.chips import peak_flops
from simclr_jax.config import ConfigError
from simclr_jax.data.sources import align_classes, load_examples, without_multi_labels
from simclr_jax.data.spec import Batch, DataError, Examples
from simclr_jax.evaluators.features import features_of
from simclr_jax.evaluators.knn import knn_accuracy
from simclr_jax.log import Log
from simclr_jax.meter import Schedule
from simclr_jax.planning.flops import count_flops
from simclr_jax.profiling import Profile
from simclr_jax.state import TrainState
from simclr_jax.step import Step, abstract_state, init_state, make_train_step, state_shardings
from simclr_jax.tasks.pretrain import Pretrain, make_task

# What stops all processes of a job when one of them finds it.
MISTAKES = (ConfigError, DataError, CheckpointError)


def pretrain(
    config: ConfigDict,
    directory: str,
    *,
    allow_change: bool = False,
    profile_steps: tuple[int, int] | None = None,
) -> TrainState:
    """Runs, or resumes, a pretraining.

    Args:
        config: a checked configuration (config.load_config).
        directory: the work directory, local or gs://; the README says what is in it.
        allow_change: go on in a work directory of another configuration, which is refused otherwise.
        profile_steps: the first and the last step to record in the directory's `profile/`.

    Returns:
        The last state, which is also in the newest checkpoint.

    Raises:
        ConfigError, DataError, CheckpointError: something that the user has to change.
        meter.NotFiniteError: the loss is no number any more.
        loop.Preempted: SIGTERM came.
    """
    mesh = parallel.make_mesh()

    def prepare():
        examples, eval_examples = _open_data(config)
        schedule = make_schedule(config, examples.size)
        program = make_program(config, examples.num_classes, schedule, mesh)
        # Only now, when data and devices are found to fit, is anything written.
        changed = workdir.claim(directory, config, allow_change=allow_change) if processes.is_first() else []
        return examples, eval_examples, schedule, program, changed

    examples, eval_examples, schedule, program, changed = processes.together(prepare, MISTAKES)
    log = Log(directory, schedule.total_steps, tensorboard=True)
    for line in changed:
        log.say(f'Configuration changed: {line}')
    checkpoints = Checkpoints(directory, keep=config.checkpoint_keep, say=log.say)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    with contextlib.closing(log), contextlib.closing(checkpoints):
        state = _first_state(config, program, init_key, checkpoints, log)
        _introduce(config, examples, eval_examples, schedule, state, log)
        return loop.train(
            state,
            program.step,
            functools.partial(_train_batches, config, examples),
            schedule=schedule,
            mesh=mesh,
            key=step_key,
            checkpoints=checkpoints,
            log=log,
            evaluate=_online_knn(config, program.task, examples, eval_examples, mesh),
            step_flops=_step_flops(config, examples.num_classes, mesh),
            profile=Profile(profile_steps, str(epath.Path(directory) / 'profile')),
        )


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled for a pretraining.

    Attributes:
        task: what is learnt.
        tx: the optimiser.
        shardings: where the state's arrays lie, see step.state_shardings.
        step: see step.make_train_step.
    """

    task: Pretrain
    tx: optax.GradientTransformation
    shardings: TrainState
    step: Step

    def abstract_arguments(self, config: ConfigDict) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct], jax.Array]:
        """Shapes and shardings of the step's arguments, for compiling it without any data or device memory."""

        def placed(leaf, sharding):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        mesh = self.task.mesh
        state = jax.tree.map(placed, abstract_state(self.task, self.tx), self.shardings)
        images, size = config.batch_size, config.data.image_size
        rows = {
            'views': ((images, len(config.augment.views), size, size, 3), jnp.float32),
            'label': ((images,), jnp.int32),
            'mask': ((images,), jnp.float32),
            'index': ((images,), jnp.int32),
        }
        batch = {name: jax.ShapeDtypeStruct(*row, sharding=parallel.by_rows(mesh)) for name, row in rows.items()}
        key = jax.eval_shape(jax.random.key, 0)
        return state, batch, placed(key, parallel.replicated(mesh))


def make_program(config: ConfigDict, num_classes: int, schedule: Schedule, mesh: Mesh) -> Program:
    """The training step that a configuration describes.

    Args:
        config: checked.
        num_classes: of the probe; 0: there is none.
        schedule: as of `make_schedule`.
        mesh: the devices; only their number and kind matter, so that they may be those of a topology.

    Raises:
        ConfigError: batch or microbatch cannot be divided among the devices.
    """
    problems = parallel.check_batch_size(config.batch_size, mesh.size)
    if config.microbatch:
        problems += parallel.check_batch_size(config.microbatch, mesh.size, 'microbatch')
    if problems:
        raise ConfigError(problems)
    task = make_task(config, num_classes, mesh)
    tx = optim.make_optimizer(
        config.optimizer.name,
        schedule.learning_rate,
        weight_decay=config.optimizer.weight_decay,
        momentum=config.optimizer.momentum,
    )
    shardings = state_shardings(task, tx, mesh, config.sharding)
    microbatches = config.batch_size // (config.microbatch or config.batch_size)
    step = make_train_step(task, tx, mesh, shardings=shardings, microbatches=microbatches)
    return Program(task, tx, shardings, step)


def _step_flops(config: ConfigDict, num_classes: int, mesh: Mesh) -> float:
    """Operations of a step that computes nothing twice; 0 where no peak is known to set them against."""
    if peak_flops(jax.devices()[0].device_kind) is None:
        return 0.0
    plain = config.copy_and_resolve_references().unlock()
    plain.update(microbatch=0, sharding='replicated')
    plain.model.remat = ()
    program = make_program(plain, num_classes, make_schedule(plain, plain.batch_size), mesh)
    return float(count_flops(jax.make_jaxpr(program.step)(*program.abstract_arguments(plain)).jaxpr))


def _open_data(config: ConfigDict) -> tuple[Examples, Examples | None]:
    examples = without_multi_labels(load_examples(config.data, config.data.split))
    if config.batch_size > examples.size:
        raise ConfigError(
            [f'batch_size={config.batch_size}: {examples.name} has only {examples.size} images; choose at most that']
        )
    if not config.data.eval_split:
        return examples, None
    eval_examples = without_multi_labels(load_examples(config.data, config.data.eval_split))
    return examples, align_classes(eval_examples, examples)


def training_policy(config: ConfigDict) -> Policy:
    """The augmentation that a configuration describes."""
    return make_policy(
        config.data.image_size,
        shared=config.augment.shared,
        views=config.augment.views,
        parameters={name: config.augment[name].to_dict() for name in OPERATIONS},
    )


def _train_batches(config: ConfigDict, examples: Examples, start_step: int) -> Iterator[Batch]:
    from simclr_jax.data.pipeline import Share, TrainBatches

    return TrainBatches(
        examples,
        training_policy(config),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        share=Share(jax.process_index(), jax.process_count()),
        max_unreadable=config.data.max_unreadable,
    )


def make_schedule(config: ConfigDict, num_examples: int) -> Schedule:
    """Lengths and learning rates of a run on so many images.

    Raises:
        ConfigError: the warm-up leaves no step for training.
    """
    batch_size, epochs = config.batch_size, config.train_epochs
    total = config.train_steps or lengths.total_steps(num_examples, epochs, batch_size)
    warmup = lengths.warmup_steps(num_examples, config.warmup_epochs, batch_size)
    if warmup >= total and not config.train_steps:
        raise ConfigError(
            [f'warmup_epochs={config.warmup_epochs}: must be below train_epochs={epochs}, all of it is warm-up']
        )
    peak = lengths.peak_learning_rate(config.optimizer.learning_rate, batch_size, config.optimizer.scaling)
    interval = functools.partial(lengths.steps_of_epochs, num_examples=num_examples, batch_size=batch_size)
    return Schedule(
        total_steps=total,
        epoch_steps=num_examples / batch_size,
        log_every=config.log_every_steps,
        checkpoint_every=config.checkpoint_every_steps or interval(config.checkpoint_every_epochs),
        evaluate_every=interval(config.knn.every_epochs) if config.knn.every_epochs else 0,
        learning_rate=optim.warmup_cosine(peak, total, warmup),
    )


def _first_state(
    config: ConfigDict, program: Program, key: jax.Array, checkpoints: Checkpoints, log: Log
) -> TrainState:
    """Where the run begins: 1. its own newest checkpoint; 2. init_from; 3. fresh parameters."""
    mesh = program.task.mesh
    state = init_state(program.task, program.tx, key, mesh, program.shardings)
    if checkpoints.latest_step() is not None:
        state = checkpoints.restore(abstract(state))
        log.say(f'Resuming at step {int(state.step)}.')
    elif config.init_from:
        state = jax.device_put(_initialised_from(config.init_from, state, mesh, log), program.shardings)
    log.resume(int(state.step))
    return state


def _initialised_from(directory: str, state: TrainState, mesh: Mesh, log: Log) -> TrainState:
    """Takes encoder and heads from another run; a head of another shape stays fresh, an encoder is an error."""
    workdir.read_config(directory)
    source = Checkpoints(directory, say=log.say)
    loaded, step = source.restore_model(mesh)
    source.close()
    variables = {'params': dict(state.params), 'batch_stats': dict(state.batch_stats)}
    fresh = set()
    for collection, parts in variables.items():
        for part, values in parts.items():
            candidate = loaded[collection].get(part)
            if jax.tree.map(jnp.shape, candidate) == jax.tree.map(jnp.shape, values):
                parts[part] = candidate
            else:
                fresh.add(part)
    if 'encoder' in fresh:
        raise ConfigError([f'init_from={directory}: its encoder is of another shape; set the fields of model as there'])
    log.say(f'Initialised from step {step} of {directory}.' + (f' Fresh: {", ".join(sorted(fresh))}.' if fresh else ''))
    return state.replace(**variables)


def _online_knn(config, task: Pretrain, examples: Examples, eval_examples: Examples | None, mesh: Mesh):
    """The loop's `evaluate`: kNN of the test images among training images; None where it cannot be."""
    if eval_examples is None or not examples.num_classes or not eval_examples.num_classes:
        return None
    encode = jax.jit(task.encode)
    settings = {'image_size': config.data.image_size, 'batch_size': config.batch_size, 'mesh': mesh}

    def evaluate(state: TrainState) -> dict[str, float]:
        encode_state = functools.partial(encode, {'params': state.params, 'batch_stats': state.batch_stats})
        bank = features_of(encode_state, examples, limit=config.knn.bank_images, **settings).labelled()
        queries = features_of(encode_state, eval_examples, **settings).labelled()
        accuracies = knn_accuracy(
            bank.values,
            bank.labels,
            queries.values,
            queries.labels,
            k=config.knn.k,
            temperature=config.knn.temperature,
            num_classes=examples.num_classes,
        )
        return {f'knn_top1_k{k}': accuracy for k, accuracy in accuracies.items()}

    return evaluate


def _introduce(config, examples, eval_examples, schedule: Schedule, state: TrainState, log: Log) -> None:
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.params))
    devices = jax.devices()
    labels = f'{examples.num_classes} classes' if examples.num_classes else 'no labels'
    evaluated = f', evaluated on {eval_examples.name} ({eval_examples.size:,})' if eval_examples else ''
    log.say(f'Data: {examples.name}, {examples.size:,} images, {labels}{evaluated}.')
    log.say(
        f'Model: ResNet-{config.model.depth} x{config.model.width:g}, {count:,} parameters, '
        f'{config.head.kind} head; loss {config.loss.name}.'
    )
    log.say(
        f'Run: {schedule.total_steps:,} steps of {config.batch_size} images '
        f'({schedule.total_steps / schedule.epoch_steps:.1f} epochs) on {len(devices)} x {devices[0].device_kind}.'
    )
