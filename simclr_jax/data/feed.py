"""Where images become views (config.data.feed).

| feed       | the host                     | the devices, as a part of the training step         |
|------------|------------------------------|-----------------------------------------------------|
| `host`     | makes whole views, floats    | nothing                                             |
| `hybrid`   | decodes, crops and resizes   | colour, flip and blur. Views travel as bytes.       |
| `resident` | names the images of a batch  | the whole augmentation. The data set is in memory.  |

`auto` is `host` on CPUs. Elsewhere it is `resident` for images of one size that take up to RESIDENT_BYTES, and
`hybrid` for others.

All feeds draw from the same distributions but use different random numbers. A run that resumes with another feed sees
other pixels from there on. The training is equivalent, not identical.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax.augment.policy import OPERATIONS, Policy, make_policy
from simclr_jax.augment.views import MakeViews, given_views, make_views_of
from simclr_jax.data.resident import ResidentBatches
from simclr_jax.data.spec import Batch, DataError, Decoded, Encoded, Examples, FeedBatch, Reading, Share

# Bytes on all devices together. A limit for each device would let the feed depend on their number.
RESIDENT_BYTES = 2 * 2**30


@dataclasses.dataclass(frozen=True)
class Feed:
    """Images on their way into the training step.

    Attributes:
        name: 'host', 'hybrid' or 'resident'.
        make_views: The devices' part of the augmentation, a function for the task.
        batch: Shape and dtype of each array of the global batch.
        examples: Images of the feed, None for a feed that is only planned.
        batches: Step to endless batches from that step on. They hold the rows of this process, or global arrays where
            the feed is resident.
    """

    name: str
    make_views: MakeViews
    batch: dict[str, jax.ShapeDtypeStruct]
    examples: Examples | None
    batches: Callable[[int], Iterator[FeedBatch]]


def training_policy(config: ConfigDict) -> Policy:
    """The augmentation that the configuration of a pretraining describes."""
    return make_policy(
        config.data.image_size,
        shared=config.augment.shared,
        views=config.augment.views,
        parameters={name: config.augment[name].to_dict() for name in OPERATIONS},
    )


def open_feed(config: ConfigDict, examples: Examples, mesh: Mesh, platform: str | None = None) -> Feed:
    """Opens the feed that a configuration means for these images.

    Args:
        config: Checked configuration of a pretraining.
        examples: Images to train on.
        mesh: Devices that train.
        platform: Kind of devices to choose for, 'cpu', 'gpu' or 'tpu'. None means the kind of the mesh.

    Raises:
        DataError: data.feed=resident, but the images have several sizes or are too large to be in memory.
    """
    wanted = config.data.feed
    planned = _without_data(wanted, platform or _platform(mesh))
    if wanted in ('host', 'hybrid') or planned == 'host':
        return _FEEDS[planned](config, examples, mesh)
    try:
        decoded = _in_memory(examples, RESIDENT_BYTES if wanted == 'auto' else math.inf)
    except DataError:
        if wanted == 'auto':
            return _FEEDS[planned](config, examples, mesh)
        raise
    return _resident(config, decoded, mesh)


def plan_feed(config: ConfigDict, mesh: Mesh) -> Feed:
    """The feed of a configuration whose data is not here. `auto` is never resident then.

    Args:
        config: Checked configuration of a pretraining.
        mesh: Devices that would train.
    """
    return _FEEDS[_without_data(config.data.feed, _platform(mesh))](config, None, mesh)


def host_batches(
    examples: Examples,
    policy: Policy,
    mesh: Mesh,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    max_unreadable: float = 0.0,
    as_bytes: bool = False,
    reading: Reading = Reading(),
) -> Iterator[Batch]:
    """Endless batches of views that the host makes, the rows of this process.

    Args:
        examples, policy, batch_size, seed, start_step, max_unreadable, as_bytes, reading: See `pipeline.TrainBatches`.
        mesh: Devices that receive the batches. Its processes share the rows.
    """
    from simclr_jax.data.pipeline import TrainBatches

    return TrainBatches(
        examples,
        policy,
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        share=Share.of_this_process(mesh),
        max_unreadable=max_unreadable,
        as_bytes=as_bytes,
        reading=reading,
    )


def _platform(mesh: Mesh) -> str:
    return mesh.devices.flat[0].platform


def _without_data(feed: str, platform: str) -> str:
    """What `data.feed` means for images of which nothing is known: never 'auto'."""
    return feed if feed != 'auto' else 'host' if platform == 'cpu' else 'hybrid'


def _in_memory(examples: Examples, most_bytes: float) -> Examples:
    """The images decoded. A DataError if that takes more bytes, or if they have several sizes."""
    content = examples.content
    if isinstance(content, Encoded):
        from simclr_jax.data.pipeline import decode_all

        content = Decoded(decode_all(examples, most_bytes))
    if not isinstance(content, Decoded):
        raise DataError(f'{examples.name} is too large to be in memory as a whole; choose data.feed=hybrid')
    if content.images.nbytes > most_bytes:
        raise DataError(f'{examples.name} takes {content.images.nbytes:,} bytes, more than {most_bytes:,}')
    return dataclasses.replace(examples, content=content)


def _host(config: ConfigDict, examples: Examples | None, mesh: Mesh) -> Feed:
    batch = _batch(config, 'views', _views_shape(config), np.float32)
    batches = _made_by_host(config, examples, training_policy(config), mesh, as_bytes=False)
    return Feed('host', given_views, batch, examples, batches)


def _hybrid(config: ConfigDict, examples: Examples | None, mesh: Mesh) -> Feed:
    first, rest = training_policy(config).split()
    batch = _batch(config, 'views', _views_shape(config), np.uint8)
    batches = _made_by_host(config, examples, first, mesh, as_bytes=True)
    return Feed('hybrid', make_views_of('views', rest), batch, examples, batches)


def _resident(config: ConfigDict, examples: Examples | None, mesh: Mesh) -> Feed:
    size = config.data.image_size
    # Images that are not here are planned at the size of the views.
    content = None if examples is None else examples.content
    assert content is None or isinstance(content, Decoded)
    shape = (size, size, 3) if content is None else content.images.shape[1:]

    def batches(start_step: int) -> Iterator[FeedBatch]:
        assert examples is not None, 'the feed is only planned'
        assert content is not None
        assert examples.labels is not None
        order = {'batch_size': config.batch_size, 'seed': config.seed, 'start_step': start_step}
        return ResidentBatches(content.images, examples.labels, mesh, **order)

    batch = _batch(config, 'images', shape, np.uint8)
    return Feed('resident', make_views_of('images', training_policy(config)), batch, examples, batches)


_FEEDS = {'host': _host, 'hybrid': _hybrid, 'resident': _resident}


def _made_by_host(config: ConfigDict, examples: Examples | None, policy: Policy, mesh: Mesh, *, as_bytes: bool):
    """The function `Feed.batches` of views that the host makes."""
    data = config.data

    def batches(start_step: int) -> Iterator[Batch]:
        assert examples is not None, 'the feed is only planned'
        return host_batches(
            examples,
            policy,
            mesh,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=start_step,
            max_unreadable=data.max_unreadable,
            as_bytes=as_bytes,
            reading=Reading(data.threads, data.parallel_calls, data.prefetch),
        )

    return batches


def _views_shape(config: ConfigDict) -> tuple[int, ...]:
    size = config.data.image_size
    return len(config.augment.views), size, size, 3


def _batch(config: ConfigDict, pixels: str, shape: tuple[int, ...], dtype: type) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the global batch, for pixels of one shape per image."""
    rows = functools.partial(jax.ShapeDtypeStruct, (config.batch_size,))
    return {
        pixels: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype),
        'label': rows(np.int32),
        'mask': rows(np.float32),
        'index': rows(np.int32),
    }
