"""Trainings that a protocol needs, whatever they learn: batch size, learning rate, program, directory and run.

Each training has its own directory in the work directory, trained/NAME/, with settings, metrics and checkpoints. The
same evaluation again resumes it.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from etils import epath
from ml_collections import ConfigDict

from simclr_jax import distributed, sharding
from simclr_jax.augment.views import MakeViews, given_views
from simclr_jax.config.whole_file import write_whole
from simclr_jax.data.spec import DataError, Examples, FeedBatch
from simclr_jax.evaluation.extractor import FeatureExtractor
from simclr_jax.evaluation.protocols.measurement import MeasurementOn
from simclr_jax.models.encoders import Encoder
from simclr_jax.tasks.finetune import init_from
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

CHECKPOINTS_PER_TRAINING = 10

# Bytes of a training's name in the name of its directory.
LONGEST_NAME = 120


class FreezableTask(Task, Protocol):
    """A task that leaves some parameters alone."""

    def is_frozen(self, path: tuple[str, ...]) -> bool: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled part of a training, the same for every learning rate and weight decay.

    Attributes:
        learnt: Images to learn from.
        batch_size: Images per batch.
        init: Function (key, pretrained variables, peak learning rate, weight decay) -> state at step 0.
        step: Training step, see `step.make_train_step`.
        predict: Jitted function (variables, images) -> predictions.
        details: Names of the predictions in the results.
    """

    learnt: Examples
    batch_size: int
    init: Callable[..., TrainState]
    step: Step
    predict: Callable[[Any, jax.Array], jax.Array]
    details: tuple[str, ...] = ('',)


def fitting_batch_size(settings: ConfigDict, learnt: Examples, extractor: FeatureExtractor) -> int:
    """The batch size of the settings, rounded down to a multiple of the devices, at most the number of images."""
    devices = extractor.mesh.size
    return max(min(settings.batch_size, learnt.size) // devices, 1) * devices


def frozen_parts(protocol: str, settings: ConfigDict, encoder: Encoder) -> int:
    """Number of frozen parts of an encoder, from the field `after_block`.

    Args:
        protocol: Name of the protocol and of its group in the configuration.
        settings: Group of the protocol in the configuration.
        encoder: Encoder to start from.

    Raises:
        DataError: The encoder has no such part.
    """
    last = len(encoder.parts) - 1
    if settings.after_block > last:
        raise DataError(
            f'{protocol}.after_block={settings.after_block}: {encoder.title} has the parts 0 (stem) to {last} '
            f'({encoder.parts[-1]}); choose at most {last}'
        )
    return settings.after_block + 1


def compile_programs(
    task: FreezableTask,
    predict: Callable[[Any, jax.Array], jax.Array],
    settings: ConfigDict,
    learnt: Examples,
    extractor: FeatureExtractor,
    details: tuple[str, ...] = ('',),
) -> Programs:
    """Makes the programs of a training from a pretrained encoder. They are compiled on their first call.

    Args:
        task: Task that is learnt.
        predict: Function (variables, images) -> predictions.
        settings: Group of the protocol in the configuration.
        learnt: Images to learn from.
        extractor: Encoder to start from.
        details: Names of the predictions in the results.
    """
    batch_size = fitting_batch_size(settings, learnt, extractor)
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

    return Programs(
        learnt=learnt,
        batch_size=batch_size,
        init=jax.jit(init, out_shardings=sharding.replicated(extractor.mesh)),
        step=make_train_step(task, tx, extractor.mesh),
        predict=jax.jit(predict),
        details=details,
    )


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


def claim(
    protocol: str,
    measurement: MeasurementOn[Any],
    settings: ConfigDict,
    programs: Programs,
    name: str,
    image_size: int,
    content: str,
) -> epath.Path:
    """Makes the directory of a training. Another encoder, data set or setting has another directory.

    Args:
        protocol: Name of the protocol.
        measurement: Encoder to start from, and its work directory.
        settings: All settings that change the training.
        programs: Programs of the training.
        name: What is trained on what, for the name of the directory.
        image_size: Side of the views, pixels.
        content: Text that changes with what is learnt, see `digest_of_labels`.
    """
    identity = {
        'protocol': protocol,
        'of': name,
        'encoder': measurement.extractor.identity,
        'images': f'{programs.learnt.name} ({programs.learnt.size})',
        'content': content,
        'image_size': image_size,
        'batch_size': programs.batch_size,
        'seed': measurement.config.seed,
        'settings': settings.to_dict(),
    }
    text = json.dumps(identity, indent=2) + '\n'
    plain = ''.join(letter if letter.isalnum() or letter in '.-%' else '_' for letter in name)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    # File systems allow names of 255 bytes. The name may be a path, whose end says most.
    plain = plain.encode()[-LONGEST_NAME:].decode(errors='ignore')
    directory = epath.Path(measurement.directory) / 'trained' / f'{protocol}-{plain}-{digest}'
    if distributed.is_first():
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / 'settings.json', text)
    return directory


def digest_of_labels(learnt: Examples) -> str:
    """Text that changes with the ids of the images, their labels and the names of the classes."""
    digest = hashlib.blake2b(repr(learnt.class_names).encode(errors='surrogateescape'), digest_size=16)
    for name in learnt.ids():
        digest.update(f'{name}\0'.encode(errors='surrogateescape'))
    if learnt.labels is not None:
        digest.update(learnt.labels.tobytes())
    return digest.hexdigest()


def train(
    protocol: str,
    measurement: MeasurementOn[Any],
    settings: ConfigDict,
    programs: Programs,
    directory: epath.Path,
    batches: Callable[[int], Iterator[FeedBatch]],
    make_views: MakeViews = given_views,
) -> dict[str, Any]:
    """Trains to the end, or resumes an interrupted training.

    Args:
        protocol: Name of the protocol, for the log.
        measurement: Encoder to start from, and the seed.
        settings: Group of the protocol in the configuration.
        programs: Programs of the training.
        directory: Directory of the training, see `claim`.
        batches: Function of a step that gives the batches from that step on.
        make_views: Function of a batch that gives its views in [0, 1], for a picture of the first ones.

    Returns:
        The model's variables, {'params': ..., 'batch_stats': ...}.
    """
    extractor, learnt = measurement.extractor, programs.learnt
    peak = peak_learning_rate(settings.learning_rate, programs.batch_size, settings.scaling)
    total = _total_steps(settings, learnt.size, programs.batch_size)
    interval = -(-total // CHECKPOINTS_PER_TRAINING)
    init_key, step_key = jax.random.split(jax.random.key(measurement.config.seed))
    start = init_key, extractor.variables, peak, settings.weight_decay
    training = Training(
        step=programs.step,
        batches=batches,
        schedule=Schedule(
            total_steps=total,
            epoch_steps=learnt.size / programs.batch_size,
            log_every=interval,
            checkpoint_every=interval,
            evaluate_every=0,
            learning_rate=_learning_rate(settings, learnt.size, programs.batch_size)(peak),
        ),
        mesh=extractor.mesh,
        key=step_key,
        make_views=make_views,
    )
    introduction = f'{protocol}: {learnt.name}, {learnt.size:,} images, {total:,} steps; {directory}'
    state = start_or_resume(
        str(directory),
        sharding.placed(jax.eval_shape(programs.init, *start), sharding.replicated(extractor.mesh)),
        lambda _: programs.init(*start),
        training,
        introduce=lambda say: say(introduction),
    )
    return {'params': state.params, 'batch_stats': state.batch_stats}
