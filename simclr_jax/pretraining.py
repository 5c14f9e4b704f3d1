"""The story of `simclr train`: data, feed, program, first state, run."""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import distributed, sharding
from simclr_jax.build import Program, make_program, make_schedule
from simclr_jax.config import ConfigError, check
from simclr_jax.config.paths import directory_path
from simclr_jax.data.feed import open_feed
from simclr_jax.data.sources import align_classes, load_examples, without_multi_labels
from simclr_jax.data.spec import SKIPPED, DataError, Examples
from simclr_jax.evaluation.features import features_of
from simclr_jax.planning.flops import step_flops
from simclr_jax.probes.knn import knn_accuracy
from simclr_jax.tasks.simclr import Pretrain
from simclr_jax.training import workdir
from simclr_jax.training.checkpoints import CheckpointError, Checkpoints
from simclr_jax.training.loop import Training
from simclr_jax.training.profile import Profile
from simclr_jax.training.run import Say, start_or_resume
from simclr_jax.training.schedule import Schedule
from simclr_jax.training.state import TrainState

# Mistakes of the user. A process that meets one of them stops all processes of the job.
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
        config: Configuration of a pretraining, for example from `config.load_config`. It is checked first.
        directory: Work directory, local or gs://. The README lists its files.
        allow_change: Whether to resume a run with a changed configuration, which is refused otherwise.
        profile_steps: First and last step to record in `profile/` of the directory, counted from 1.

    Returns:
        The last state, which is also in the newest checkpoint.

    Raises:
        ConfigError, DataError, CheckpointError: The user has to change something.
        meter.NotFiniteError: The loss is not finite.
        loop.Preempted: SIGTERM came. The state is saved.
    """
    problems = check(config)
    if problems:
        raise ConfigError(problems)
    directory = directory_path(directory)
    mesh = sharding.make_mesh()

    def prepare():
        name = config.data.name if config.data.source == 'tfds' else config.data.path
        distributed.say(f'Reading {name or config.data.source}.')
        examples, eval_examples = _open_data(config)
        feed = open_feed(config, examples, mesh)
        schedule = make_schedule(config, examples.size)
        program = make_program(config, examples.num_classes, schedule, mesh, feed)
        if distributed.is_first():
            workdir.check_claim(directory, config, allow_change=allow_change)
        # A run that resumes does not read it again.
        if config.init_from and not (epath.Path(directory) / 'checkpoints').exists():
            _check_inputs(config)
        return eval_examples, schedule, program

    eval_examples, schedule, program = distributed.together(prepare, MISTAKES)
    examples = program.feed.examples
    assert examples is not None, 'only a planned feed has none'
    init_key, step_key = jax.random.split(jax.random.key(config.seed))

    training = Training(
        step=program.step,
        batches=program.feed.batches,
        schedule=schedule,
        mesh=mesh,
        key=step_key,
        evaluate=_online_knn(config, program.task, examples, eval_examples, mesh),
        make_views=program.feed.make_views,
        step_flops=step_flops(config, examples.num_classes, mesh),
        profile=Profile(profile_steps, str(epath.Path(directory) / 'profile')),
    )
    return start_or_resume(
        directory,
        program.state,
        functools.partial(_first_state, config, program, init_key),
        training,
        introduce=functools.partial(_introduce, config, program, examples, eval_examples, schedule),
        # The directory is written only now, after data, devices and the shapes of its checkpoints have been checked.
        claim=functools.partial(workdir.claim, directory, config, allow_change=allow_change),
        checkpoints_kept=config.checkpoint_keep,
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


def _first_state(config: ConfigDict, program: Program, key: jax.Array, say: Say) -> TrainState:
    """The state at step 0: encoder and heads of `init_from` where it is set, fresh parameters for the rest."""
    state = program.init(key)
    if config.init_from:
        state = jax.device_put(_initialised_from(config, state, program.task.mesh, say), program.shardings)
    return state


def _initialised_from(config: ConfigDict, state: TrainState, mesh: Mesh, say: Say) -> TrainState:
    """Takes encoder and heads from another run. A head of another shape stays fresh.

    Raises:
        ConfigError: The encoder of the other run has another shape, or the directory holds no run.
        CheckpointError: The other run has no undamaged checkpoint.
    """
    directory = directory_path(config.init_from)
    source = Checkpoints(directory, say=say, reads_only=True)
    loaded, step = source.restore_model(mesh)
    source.close()
    variables = {'params': dict(state.params), 'batch_stats': dict(state.batch_stats)}
    fresh = set()
    for collection, parts in variables.items():
        for part, values in parts.items():
            candidate = loaded[collection].get(part)
            if jax.tree.map(jax.numpy.shape, candidate) == jax.tree.map(jax.numpy.shape, values):
                parts[part] = candidate
            else:
                fresh.add(part)
    if 'encoder' in fresh:
        raise ConfigError([f'init_from={directory}: its encoder has another shape; set the fields of model as there'])
    say(f'Initialised from step {step} of {directory}.' + (f' Fresh: {", ".join(sorted(fresh))}.' if fresh else ''))
    return state.replace(**variables)


def _check_inputs(config: ConfigDict) -> None:
    """Raises ConfigError if `init_from` is no run, or its encoder computes something else with the same parameters."""
    try:
        theirs = workdir.read_config(directory_path(config.init_from)).model
    except ConfigError as error:
        raise ConfigError([f'init_from={config.init_from}: it cannot be read:', *error.problems]) from error
    problems = [
        f'model.{name}={config.model[name]}: is {theirs[name]} in init_from={config.init_from}, and the parameters '
        'were trained with that; set the same'
        for name in ('encoder', 'pool', 'mean', 'std', 'border')
        if config.model[name] != theirs[name]
    ]
    if problems:
        raise ConfigError(problems)


def _online_knn(
    config: ConfigDict, task: Pretrain, examples: Examples, eval_examples: Examples | None, mesh: Mesh
) -> Callable[[TrainState], dict[str, float]] | None:
    """The online evaluation: kNN of the test images among training images. None without labels or a test split."""
    if eval_examples is None or not examples.num_classes or not eval_examples.num_classes:
        return None
    encode = jax.jit(task.encode)
    settings = {'image_size': config.data.image_size, 'batch_size': config.batch_size, 'mesh': mesh}
    skipped: set[str] = set()

    def evaluate(state: TrainState) -> dict[str, float]:
        encode_state = functools.partial(encode, {'params': state.params, 'batch_stats': state.batch_stats})
        bank = features_of(encode_state, examples, limit=config.knn.bank_images, **settings).labelled()
        queries = features_of(encode_state, eval_examples, **settings)
        # The training itself names those of the bank.
        missing = map(eval_examples.id_of, np.setdiff1d(np.arange(eval_examples.size), queries.index).tolist())
        for name in sorted(set(missing) - skipped):
            distributed.say(SKIPPED.format(name))
            skipped.add(name)
        queries = queries.labelled()
        accuracies = knn_accuracy(
            bank.values,
            bank.labels,
            queries.values,
            queries.labels,
            k=sorted({min(k, len(bank.labels)) for k in config.knn.k}),
            temperature=config.knn.temperature,
            num_classes=examples.num_classes,
        )
        return {f'knn_top1_k{k}': accuracy for k, accuracy in accuracies.items()}

    return evaluate


def _introduce(
    config: ConfigDict,
    program: Program,
    examples: Examples,
    eval_examples: Examples | None,
    schedule: Schedule,
    say: Say,
) -> None:
    """Writes to the log what the run is: data, model, length and devices."""
    devices = jax.devices()
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(program.state.params))
    labels = f'{examples.num_classes} classes' if examples.num_classes else 'no labels'
    evaluated = f', evaluated on {eval_examples.name} ({eval_examples.size:,})' if eval_examples else ''
    say(f'Data: {examples.name}, {examples.size:,} images, {labels}{evaluated}; feed: {program.feed.name}.')
    for note in dict.fromkeys((*examples.notes, *(eval_examples.notes if eval_examples else ()))):
        say(note)
    bank_size = min(config.knn.bank_images, examples.size)
    if eval_examples and examples.num_classes and max(config.knn.k) > bank_size:
        say(f'knn.k={config.knn.k}: the bank has only {bank_size} images; they all vote where k is larger.')
    say(
        f'Model: {program.task.model.encoder.title}, {count:,} parameters, '
        f'{config.head.kind} head; loss {config.loss.name}.'
    )
    say(
        f'Run: {schedule.total_steps:,} steps of {config.batch_size} images '
        f'({schedule.total_steps / schedule.epoch_steps:.1f} epochs) on {len(devices)} x {devices[0].device_kind}.'
    )
