"""A pretraining run from its configuration: puts data, task, optimiser and loop together."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import distributed, sharding
from simclr_jax.build import Program, make_program, make_schedule
from simclr_jax.config import ConfigError
from simclr_jax.data.feed import choose, steps_per_dispatch, train_batches
from simclr_jax.data.sources import align_classes, load_examples, without_multi_labels
from simclr_jax.data.spec import DataError, Examples
from simclr_jax.evaluation.features import features_of
from simclr_jax.planning.flops import step_flops
from simclr_jax.probes.knn import knn_accuracy
from simclr_jax.tasks.simclr import Pretrain
from simclr_jax.training import loop, workdir
from simclr_jax.training.checkpoints import CheckpointError, Checkpoints, abstract
from simclr_jax.training.log import Log
from simclr_jax.training.profile import Profile
from simclr_jax.training.schedule import Schedule
from simclr_jax.training.state import TrainState
from simclr_jax.training.step import init_state

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
    mesh = sharding.make_mesh()

    def prepare():
        examples, eval_examples = _open_data(config)
        feed, examples = choose(config, examples, jax.devices()[0].platform)
        at_once = steps_per_dispatch(feed, config, examples.size)
        schedule = dataclasses.replace(make_schedule(config, examples.size), steps_per_dispatch=at_once)
        program = make_program(config, examples.num_classes, schedule, mesh, feed)
        # Only now, when data and devices are found to fit, is anything written.
        changed = workdir.claim(directory, config, allow_change=allow_change) if distributed.is_first() else []
        return examples, eval_examples, schedule, program, changed

    examples, eval_examples, schedule, program, changed = distributed.together(prepare, MISTAKES)
    log = Log(directory, schedule.total_steps, tensorboard=True)
    for line in changed:
        log.say(f'Configuration changed: {line}')
    checkpoints = Checkpoints(directory, keep=config.checkpoint_keep, say=log.say)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    with contextlib.closing(log), contextlib.closing(checkpoints):
        state = _first_state(config, program, init_key, checkpoints, log)
        _introduce(config, examples, eval_examples, schedule, program.feed, state, log)
        return loop.train(
            state,
            program.run,
            functools.partial(train_batches, program.feed, config, examples, mesh, schedule),
            schedule=schedule,
            mesh=mesh,
            key=step_key,
            checkpoints=checkpoints,
            log=log,
            evaluate=_online_knn(config, program.task, examples, eval_examples, mesh),
            make_views=program.task.make_views,
            step_flops=step_flops(config, examples.num_classes, mesh),
            profile=Profile(profile_steps, str(epath.Path(directory) / 'profile')),
        )


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


def _introduce(config, examples, eval_examples, schedule: Schedule, feed: str, state: TrainState, log: Log) -> None:
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.params))
    devices = jax.devices()
    labels = f'{examples.num_classes} classes' if examples.num_classes else 'no labels'
    evaluated = f', evaluated on {eval_examples.name} ({eval_examples.size:,})' if eval_examples else ''
    log.say(f'Data: {examples.name}, {examples.size:,} images, {labels}{evaluated}; feed: {feed}.')
    log.say(
        f'Model: ResNet-{config.model.depth} x{config.model.width:g}, {count:,} parameters, '
        f'{config.head.kind} head; loss {config.loss.name}.'
    )
    log.say(
        f'Run: {schedule.total_steps:,} steps of {config.batch_size} images '
        f'({schedule.total_steps / schedule.epoch_steps:.1f} epochs) on {len(devices)} x {devices[0].device_kind}.'
    )
