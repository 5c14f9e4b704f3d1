"""The story of `simclr train`: data, feed, program, first state, run."""

import functools
import math
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import distributed, sharding
from simclr_jax.build import Program, make_program, make_schedule
from simclr_jax.config import ConfigError, check
from simclr_jax.config.label_budget import parse_labels
from simclr_jax.config.paths import directory_path
from simclr_jax.data.feed import open_feed
from simclr_jax.data.labelled import with_label_budget
from simclr_jax.data.sources import align_classes, load_examples, without_multi_labels
from simclr_jax.data.spec import DataError, Examples
from simclr_jax.evaluation.online import online_evaluation
from simclr_jax.networks import Teacher, make_encoder
from simclr_jax.planning.flops import step_flops
from simclr_jax.tasks.memory import TEACHER
from simclr_jax.trained import load_teacher, open_teacher
from simclr_jax.training import workdir
from simclr_jax.training.checkpoints import CheckpointError, Checkpoints
from simclr_jax.training.loop import Training
from simclr_jax.training.profile import Profile
from simclr_jax.training.run import Say, start_or_resume
from simclr_jax.training.schedule import Schedule
from simclr_jax.training.state import TrainState
from simclr_jax.training.step import with_constant

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
        teacher = open_teacher(config)
        examples, eval_examples = _open_data(config, teacher)
        feed = open_feed(config, examples, mesh)
        schedule = make_schedule(config, examples.size)
        program = make_program(config, examples.num_classes, schedule, mesh, feed, teacher)
        if distributed.is_first():
            workdir.check_claim(directory, config, allow_change=allow_change)
        # A run that resumes does not read it again.
        if config.init_from and not (epath.Path(directory) / 'checkpoints').exists():
            _check_inputs(config)
        return teacher, eval_examples, schedule, program

    teacher, eval_examples, schedule, program = distributed.together(prepare, MISTAKES)
    examples = program.feed.examples
    assert examples is not None, 'only a planned feed has none'
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    constant = {} if teacher is None else _constant_parts(config, program, teacher)

    training = Training(
        step=program.step,
        batches=program.feed.batches,
        schedule=schedule,
        mesh=mesh,
        key=step_key,
        evaluate=online_evaluation(config, program.task, examples, eval_examples, mesh),
        make_views=program.feed.make_views,
        step_flops=step_flops(config, examples.num_classes, mesh, teacher),
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
        constant=constant,
    )


def _open_data(config: ConfigDict, teacher: Teacher | None) -> tuple[Examples, Examples | None]:
    examples = without_multi_labels(load_examples(config.data, config.data.split))
    if config.task == 'distill' and teacher is not None:
        examples = _with_allowed_labels(config, examples, teacher)
    if config.batch_size > examples.size:
        raise ConfigError(
            [f'batch_size={config.batch_size}: {examples.name} has only {examples.size} images; choose at most that']
        )
    if not config.data.eval_split:
        return examples, None
    eval_examples = without_multi_labels(load_examples(config.data, config.data.eval_split))
    return examples, align_classes(eval_examples, examples)


def _with_allowed_labels(config: ConfigDict, examples: Examples, teacher: Teacher) -> Examples:
    """The images of a distillation, with the labels that it may read."""
    settings = config.distill
    if settings.alpha < 1 and examples.num_classes != teacher.num_classes:
        raise ConfigError(
            [
                f'distill.alpha={settings.alpha}: the teacher has {teacher.num_classes} classes, {examples.name} has '
                f'{examples.num_classes}; set distill.alpha=1, which reads no labels, or take the data of the teacher'
            ]
        )
    only_labelled = settings.images == 'labelled'
    if settings.alpha == 1 and not only_labelled:
        return examples
    labels = parse_labels(settings.labels)
    return with_label_budget(examples, config.data, labels, only_labelled=only_labelled, seed=config.seed)


def _constant_parts(config: ConfigDict, program: Program, teacher: Teacher) -> dict[str, Any]:
    """The constant frozen parts of the state: the variables of a teacher."""
    variables = load_teacher(teacher, config.task, program.mesh, distributed.say)
    return jax.device_put({TEACHER: variables}, program.shardings.frozen.constant)


def _first_state(config: ConfigDict, program: Program, key: jax.Array, say: Say) -> TrainState:
    """The state at step 0: encoder and heads of `init_from` where it is set, fresh parameters for the rest."""
    state = program.init(key)
    if config.init_from:
        state = _initialised_from(config, state, program.mesh, say)
        if program.memory is not None:
            copy = program.memory.copy_of({'params': state.params, 'batch_stats': state.batch_stats})
            state = state.replace(frozen=state.frozen.replace(updated={**state.frozen.updated, **copy}))
        state = jax.device_put(state, with_constant(program.shardings, {}))
    return state


def _initialised_from(config: ConfigDict, state: TrainState, mesh: Mesh, say: Say) -> TrainState:
    """Takes encoder and heads from another run. A head of another shape stays fresh, and a distilled classifier too,
    unless the other run is a distillation.

    Raises:
        ConfigError: The encoder of the other run has another shape, or the directory holds no run.
        CheckpointError: The other run has no undamaged checkpoint.
    """
    directory = directory_path(config.init_from)
    source = Checkpoints(directory, say=say, reads_only=True)
    loaded, step = source.restore_model(mesh)
    source.close()
    variables = {'params': dict(state.params), 'batch_stats': dict(state.batch_stats)}
    # The probe of a pretraining has learnt from all labels, and a distillation reads only those that it may.
    starts_classifier = config.task == 'distill' and workdir.read_config(directory).task != 'distill'
    fresh = set()
    for collection, parts in variables.items():
        for part, values in parts.items():
            candidate = None if part == 'probe' and starts_classifier else loaded[collection].get(part)
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
    say(f'Model: {make_encoder(config).title}, {count:,} parameters, {_objective(config)}.')
    say(
        f'Run: {schedule.total_steps:,} steps of {config.batch_size} images '
        f'({schedule.total_steps / schedule.epoch_steps:.1f} epochs) on {len(devices)} x {devices[0].device_kind}.'
    )


def _objective(config: ConfigDict) -> str:
    """What the run learns, in a few words."""
    if config.task == 'distill':
        settings = config.distill
        return f'linear classifier; distillation, alpha {settings.alpha:g}, temperature {settings.temperature:g}'
    queue = f' with a queue of {config.loss.queue_size:,} keys' if config.loss.queue_size else ''
    teacher = f' and distances from a teacher x{config.disco.weight:g}' if config.task == 'disco' else ''
    return f'{config.head.kind} head; loss {config.loss.name}{queue}{teacher}'
