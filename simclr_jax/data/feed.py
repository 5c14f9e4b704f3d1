"""Where images become views (config.data.feed).

| feed       | the host                     | the devices, as a part of the training step         |
|------------|------------------------------|-----------------------------------------------------|
| `host`     | makes whole views, floats    | nothing                                             |
| `hybrid`   | decodes, crops and resizes   | colour, flip and blur. Views travel as bytes.       |
| `decoded`  | sends whole decoded images   | the whole augmentation                              |
| `resident` | names the images of a batch  | the whole augmentation. The data set is in memory.  |

`host` and `hybrid` need TensorFlow. `decoded` and `resident` take any source whose images have one size and fit in
memory.

`auto` is `host` on CPUs. Elsewhere it is `resident` for images of one size that take up to RESIDENT_BYTES, and
`hybrid` for others. Without TensorFlow it is `resident` up to that size, and `decoded` above.

All feeds draw from the same distributions but use different random numbers, except for `decoded` and `resident`, which
make the same views. A run that resumes with another feed sees other pixels from there on. The training is equivalent,
not identical.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax.augment.policy import OPERATIONS, Policy, make_policy
from simclr_jax.augment.views import MakeViews, given_views, make_views_of
from simclr_jax.data.reader import decode_all
from simclr_jax.data.resident import DecodedBatches, ResidentBatches
from simclr_jax.data.spec import (
    Batch,
    DataError,
    Decoded,
    Encoded,
    Examples,
    FeedBatch,
    Reading,
    Share,
    has_tensorflow,
    needs_tensorflow,
)

# Bytes on all devices together. A limit for each device would let the feed depend on their number.
RESIDENT_BYTES = 2 * 2**30


@dataclasses.dataclass(frozen=True)
class Feed:
    """Images on their way into the training step.

    Attributes:
        name: 'host', 'hybrid', 'decoded' or 'resident'.
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
        DataError: The feed needs images of one size that fit in memory, or TensorFlow, which is not installed.
    """
    wanted = config.data.feed
    if wanted != 'auto':
        return _open(wanted, config, examples, mesh)
    if not has_tensorflow():
        in_memory = _in_memory(config, examples, _free_bytes())
        assert isinstance(in_memory.content, Decoded)
        is_small = in_memory.content.images.nbytes <= RESIDENT_BYTES
        return (_resident if is_small else _decoded)(config, in_memory, mesh)
    planned = _without_data(wanted, platform or _platform(mesh))
    if planned == 'host' or not isinstance(examples.content, Decoded | Encoded):
        return _open(planned, config, examples, mesh)
    try:
        in_memory = _in_memory(config, examples, RESIDENT_BYTES)
    except DataError:
        return _open(planned, config, examples, mesh)
    return _resident(config, in_memory, mesh)


def _open(name: str, config: ConfigDict, examples: Examples, mesh: Mesh) -> Feed:
    """Opens a feed by its name."""
    if name in ('decoded', 'resident'):
        return _FEEDS[name](config, _in_memory(config, examples, _free_bytes()), mesh)
    with needs_tensorflow(f'data.feed={name}', 'choose data.feed=resident or decoded for images of one size'):
        import simclr_jax.data.pipeline  # noqa: F401
    return _FEEDS[name](config, examples, mesh)


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

    Raises:
        DataError: TensorFlow is not installed.
    """
    with needs_tensorflow('the augmentation by the host', 'choose something that trains without it'):
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


def _free_bytes() -> int:
    """Bytes of this machine's memory that are free."""
    import psutil

    return psutil.virtual_memory().available


def _in_memory(config: ConfigDict, examples: Examples, most_bytes: float) -> Examples:
    """The readable images, decoded, see `reader.decode_all`."""
    return decode_all(examples, most_bytes, config.data.max_unreadable)


def _host(config: ConfigDict, examples: Examples | None, mesh: Mesh) -> Feed:
    batch = _batch(config, 'views', _views_shape(config), np.float32)
    batches = _made_by_host(config, examples, training_policy(config), mesh, as_bytes=False)
    return Feed('host', given_views, batch, examples, batches)


def _hybrid(config: ConfigDict, examples: Examples | None, mesh: Mesh) -> Feed:
    first, rest = training_policy(config).split()
    batch = _batch(config, 'views', _views_shape(config), np.uint8)
    batches = _made_by_host(config, examples, first, mesh, as_bytes=True)
    return Feed('hybrid', make_views_of('views', rest), batch, examples, batches)


def _decoded(config: ConfigDict, examples: Examples | None, mesh: Mesh) -> Feed:
    share = Share.of_this_process(mesh)
    return _of_whole_images('decoded', config, examples, functools.partial(DecodedBatches, share=share))


def _resident(config: ConfigDict, examples: Examples | None, mesh: Mesh) -> Feed:
    return _of_whole_images('resident', config, examples, functools.partial(ResidentBatches, mesh=mesh))


def _of_whole_images(
    name: str, config: ConfigDict, examples: Examples | None, make_batches: Callable[..., Iterator[FeedBatch]]
) -> Feed:
    """A feed whose devices do the whole augmentation."""
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
        return make_batches(content.images, examples.labels, **order)

    batch = _batch(config, 'images', shape, np.uint8)
    return Feed(name, make_views_of('images', training_policy(config)), batch, examples, batches)


_FEEDS = {'host': _host, 'hybrid': _hybrid, 'decoded': _decoded, 'resident': _resident}


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
