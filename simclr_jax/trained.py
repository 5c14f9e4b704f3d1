"""A trained network in a directory: that of a run, or of a training that an evaluation has kept."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax.config import ConfigError
from simclr_jax.config.paths import directory_path
from simclr_jax.config.storage import check_reachable
from simclr_jax.networks import Teacher, projection_width
from simclr_jax.training import workdir
from simclr_jax.training.checkpoints import CheckpointError, Checkpoints

# Protocols whose trainings end in a network with one classifier.
_CLASSIFIERS = ('finetune', 'linear_sgd')
# Characters of a pattern. Names of work directories have none of them.
_PATTERN = '*?['
# Directories that a message names.
_NAMED = 5
# File in a work directory that tells where its weights were converted from.
ORIGIN = 'origin.json'


@dataclasses.dataclass(frozen=True)
class Trained:
    """Facts about a trained network.

    Attributes:
        config: Configuration of the pretraining.
        directory: Work directory, or directory of a training in it.
        image_size: Side of the images that it was trained on, pixels.
        head_layer: Index in [h, output of the head's layer 1, ...] of the features that the classifier takes.
        protocol: Protocol that trained the classifier. '' for a run.
        learnt: Encoder, data set and label budget of the protocol, such as 'simclr cifar10 10%'. '' for a run.
        images: Images that the classifier learnt from. '' for a run.
    """

    config: ConfigDict
    directory: str
    image_size: int
    head_layer: int = 0
    protocol: str = ''
    learnt: str = ''
    images: str = ''


def read_trained(directory: str) -> Trained:
    """Reads what is known about the network in a directory, without its weights.

    Args:
        directory: Work directory, or its sub-directory trained/NAME of a fine-tuned or linear classifier.

    Raises:
        ConfigError: The directory holds neither, or its training has no single classifier.
    """
    settings = _settings(epath.Path(directory))
    config = workdir.read_config(str(epath.Path(directory).parent.parent) if settings else directory)
    return Trained(config, directory, **{'image_size': config.data.image_size, **settings})


def _settings(directory: epath.Path) -> dict[str, Any]:
    """Facts about the training in a directory, by their names in `Trained`. Empty for the directory of a run."""
    path = directory / 'settings.json'
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text())
        protocol, image_size = str(settings['protocol']), int(settings['image_size'])
        head_layer = int(settings['settings'].get('head_layer', 0))
        learnt, images = str(settings['of']), str(settings['images'])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError([f'{path} is damaged: {error!r}; run the evaluation again']) from error
    if protocol not in _CLASSIFIERS:
        raise ConfigError(
            [f'{directory}: {protocol} trains no single classifier; choose a training of {" or ".join(_CLASSIFIERS)}']
        )
    found = {'image_size': image_size, 'head_layer': head_layer}
    return found | {'protocol': protocol, 'learnt': learnt, 'images': images}


def find_teacher(pattern: str) -> str:
    """The directory that `teacher.path` means.

    Args:
        pattern: Directory, local or gs://, or a pattern with * that one directory matches.

    Raises:
        ConfigError: No directory matches the pattern, or several do.
    """
    pattern = directory_path(pattern)
    if not any(character in pattern for character in _PATTERN):
        return pattern
    check_reachable(pattern)
    path = epath.Path(pattern)
    fixed = next(part for part in path.parents if not any(character in str(part) for character in _PATTERN))
    found = sorted(str(match) for match in fixed.glob(str(path.relative_to(fixed))) if match.is_dir())
    if len(found) == 1:
        return found[0]
    told = ', '.join(found[:_NAMED]) + (', ...' if len(found) > _NAMED else '')
    raise ConfigError([f'teacher.path={pattern}: must match one directory; it matches {told or "none"}'])


def open_teacher(config: ConfigDict) -> Teacher | None:
    """Reads what a student's configuration says about its teacher, without the weights.

    Args:
        config: Checked configuration of a pretraining.

    Returns:
        The teacher. None for the task 'simclr'.

    Raises:
        ConfigError, CheckpointError: The directory holds no network, or one that cannot teach this student.
    """
    if config.task == 'simclr':
        return None
    network = read_trained(find_teacher(config.teacher.path))
    with contextlib.closing(Checkpoints(network.directory, reads_only=True)) as checkpoints:
        saved = checkpoints.model_shapes()
    bias = saved['params'].get('probe', {}).get('bias')
    chosen = config.teacher.head_layer
    teacher = Teacher(
        config=network.config,
        num_classes=0 if bias is None else bias.shape[0],
        head_layer=network.head_layer if chosen < 0 else chosen,
        directory=network.directory,
        learnt=network.learnt,
    )
    problem = _problem(config, network, teacher)
    if problem:
        raise ConfigError([f'teacher.path={network.directory}: {problem}'])
    _needed(teacher.shapes(config.task), saved, network.directory)
    return teacher


def _problem(config: ConfigDict, network: Trained, teacher: Teacher) -> str:
    """Why a network cannot teach a student. '' if it can."""
    if config.task == 'distill':
        return _problem_of_classifier(config.teacher.head_layer, network, teacher)
    if network.protocol:
        return 'DisCo needs the projection head of a pretraining; choose the work directory of the run'
    if network.config.head.kind == 'none':
        return 'it has no projection head, which DisCo needs; choose the work directory of a pretraining'
    theirs, ours = network.config.head.out_dim, projection_width(config)
    if theirs != ours:
        kind = ' and head.kind=nonlinear' if config.head.kind == 'none' else ''
        return f'its projections have {theirs} values, those of the student {ours}; set head.out_dim={theirs}{kind}'
    return ''


def _problem_of_classifier(chosen: int, network: Trained, teacher: Teacher) -> str:
    """Why a network cannot teach class probabilities, with this value of teacher.head_layer. '' if it can."""
    layers = teacher.projector().head.num_layers
    if teacher.head_layer > layers:
        return f'its head has {layers} layers; choose at most that for teacher.head_layer={teacher.head_layer}'
    if not teacher.num_classes:
        return 'it has no classifier; choose a fine-tuned network, such as a directory in trained/ of its run'
    # A classifier on another layer of the same width would run too, and teach nonsense.
    if not _is_converted(network.directory):
        own = network.head_layer
        is_known = chosen in (-1, own)
        return '' if is_known else f'its classifier takes layer {own}, not teacher.head_layer={chosen}; set it to -1'
    if layers and chosen < 0:
        return (
            'converted weights do not say which layer of the head their classifier takes; set teacher.head_layer, 1 '
            "for SimCLRv2's networks that were fine-tuned on 1 % or 10 % of the labels, otherwise 0"
        )
    return ''


def _is_converted(directory: str) -> bool:
    return (epath.Path(directory) / ORIGIN).exists()


def load_teacher(teacher: Teacher, task: str, mesh: Mesh, say: Callable[[str], None]) -> Any:
    """The variables of a teacher that a task needs, on all devices.

    Args:
        teacher: Teacher from `open_teacher`.
        task: Task of the student.
        mesh: Devices that train.
        say: Function that receives lines for the user.

    Raises:
        CheckpointError: There is no undamaged checkpoint.
    """
    with contextlib.closing(Checkpoints(teacher.directory, say=say, reads_only=True)) as checkpoints:
        variables, step = checkpoints.restore_model(mesh)
    what = teacher.learnt
    if task == 'distill' and not what and teacher.config.task != 'distill' and not _is_converted(teacher.directory):
        what = 'the probe of its pretraining'
    say(f'Teacher: step {step:,} of {teacher.directory}' + (f', {what}.' if what else '.'))
    return _needed(teacher.shapes(task), variables, teacher.directory)


def _needed(shapes: Mapping[str, Any], there: Mapping[str, Any], directory: str, place: str = '') -> dict[str, Any]:
    """The entries of a tree that another tree of shapes has too."""
    found = {}
    for name, shape in shapes.items():
        path = f'{place}/{name}' if place else name
        value = there.get(name)
        if isinstance(shape, Mapping):
            found[name] = _needed(shape, {} if value is None else value, directory, path)
        elif value is None or value.shape != shape.shape:
            told = 'missing' if value is None else list(value.shape)
            raise CheckpointError(
                f'{directory}: {path} is {told} in the checkpoint and {list(shape.shape)} by its configuration; '
                'choose another teacher'
            )
        else:
            found[name] = value
    return found
