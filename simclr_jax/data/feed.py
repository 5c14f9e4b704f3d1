"""How images become views and where (config.data.feed).

host:     the CPUs do all of it; the devices get floats.
hybrid:   the CPUs decode, crop and resize; colour, flip and blur are the devices', within the step. Bytes travel.
resident: the whole data set is in the devices' memory, and everything happens there.
auto:     host on CPUs; elsewhere resident for images of one size that take up to RESIDENT_BYTES, hybrid for others.

The same distributions everywhere, by draws of their own: a run that goes on with another feed is another run from
there, but no worse.
"""

import dataclasses
import math
from collections.abc import Iterator

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax.augment.policy import OPERATIONS, Policy, make_policy
from simclr_jax.augment.views import MakeViews, given_views
from simclr_jax.config import ConfigError
from simclr_jax.data.spec import Batch, DataError, Decoded, Encoded, Examples, Reading, Share
from simclr_jax.training.schedule import Schedule

# Of all devices together. A limit of each would let the feed depend on their number.
RESIDENT_BYTES = 2 * 2**30
# Enough for the host's part to be small, few enough for a SIGTERM to be heard.
STEPS_PER_DISPATCH = 10


def training_policy(config: ConfigDict) -> Policy:
    """The augmentation that a configuration describes."""
    return make_policy(
        config.data.image_size,
        shared=config.augment.shared,
        views=config.augment.views,
        parameters={name: config.augment[name].to_dict() for name in OPERATIONS},
    )


def choose(config: ConfigDict, examples: Examples, platform: str) -> tuple[str, Examples]:
    """The feed that a configuration means for these images, and the images as that wants them.

    Args:
        config: of the pretraining.
        examples: to train on.
        platform: of the devices, 'cpu', 'gpu' or 'tpu'.

    Raises:
        DataError: data.feed=resident, but the images are of several sizes, or not in memory.
    """
    feed = config.data.feed
    otherwise = without_data(feed, platform)
    if feed in ('host', 'hybrid') or otherwise == 'host':
        return otherwise, examples
    try:
        return 'resident', _in_memory(examples, RESIDENT_BYTES if feed == 'auto' else math.inf)
    except DataError:
        if feed == 'auto':
            return otherwise, examples
        raise


def without_data(feed: str, platform: str) -> str:
    """What `data.feed` means on a platform for images of which nothing is known: never 'auto'."""
    return feed if feed != 'auto' else 'host' if platform == 'cpu' else 'hybrid'


def _in_memory(examples: Examples, most_bytes: float) -> Examples:
    """The images decoded; a DataError if that takes more bytes, or they are of several sizes."""
    content = examples.content
    if isinstance(content, Encoded):
        from simclr_jax.data.pipeline import decode_all

        content = Decoded(decode_all(examples, most_bytes))
    if not isinstance(content, Decoded):
        raise DataError(f'{examples.name} is too large to be in memory as a whole; choose data.feed=hybrid')
    if content.images.nbytes > most_bytes:
        raise DataError(f'{examples.name} takes {content.images.nbytes:,} bytes, more than {most_bytes:,}')
    return dataclasses.replace(examples, content=content)


def make_views(feed: str, policy: Policy) -> MakeViews:
    """What the devices do of the augmentation: a function for `tasks.pretrain.Pretrain`.

    Args:
        feed: host, hybrid or resident.
        policy: the whole augmentation.
    """
    if feed == 'host':
        return given_views
    from simclr_jax.augment import device

    source, rest = ('views', policy.split()[1]) if feed == 'hybrid' else ('images', policy)

    def views_of(batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        # By the image, not by its place: microbatches and any number of devices draw the same.
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch['index'])
        return device.augment(batch[source], keys, rest)

    return views_of


def steps_per_dispatch(feed: str, config: ConfigDict, num_examples: int) -> int:
    """The most steps that the devices make at one order of the host, which only resident images allow.

    Args:
        feed: host, hybrid or resident.
        config: its steps_per_dispatch, or 0 for STEPS_PER_DISPATCH, if the log wants to hear so rarely, and the
            batches together are no more than the data set.
        num_examples: images of the data set.

    Raises:
        ConfigError: several are wanted with another feed.
    """
    wanted = config.steps_per_dispatch
    if feed == 'resident':
        fitting = min(STEPS_PER_DISPATCH, config.log_every_steps, num_examples // config.batch_size)
        return wanted or max(fitting, 1)
    if wanted > 1:
        raise ConfigError(
            [
                f'steps_per_dispatch={wanted}: only resident images allow several, and the feed is {feed}; '
                'choose data.feed=resident, or steps_per_dispatch=1'
            ]
        )
    return 1


def train_batches(
    feed: str, config: ConfigDict, examples: Examples, mesh: Mesh, schedule: Schedule, start_step: int
) -> Iterator[Batch]:
    """Endless batches from a step on: this process's rows, or global arrays where the feed is resident.

    Those are stacked if `schedule.steps_per_dispatch` is above 1, see step.several_steps.
    """
    order = {'batch_size': config.batch_size, 'seed': config.seed, 'start_step': start_step}
    if feed == 'resident':
        from simclr_jax.data.resident import ResidentBatches

        several = {'most': schedule.steps_per_dispatch, 'steps_from': schedule.steps_from}
        return ResidentBatches(examples.content.images, examples.labels, mesh, **order, **several)
    from simclr_jax.data.pipeline import TrainBatches

    policy = training_policy(config)
    return TrainBatches(
        examples,
        policy if feed == 'host' else policy.split()[0],
        share=Share(jax.process_index(), jax.process_count()),
        max_unreadable=config.data.max_unreadable,
        as_bytes=feed == 'hybrid',
        reading=Reading(config.data.threads, config.data.parallel_calls, config.data.prefetch),
        **order,
    )
