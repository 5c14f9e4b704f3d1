"""Where images become views (config.data.feed).

| feed       | the host                     | the devices, as a part of the training step         |
|------------|------------------------------|-----------------------------------------------------|
| `host`     | makes whole views, floats    | nothing                                             |
| `hybrid`   | decodes, crops and resizes   | colour, flip and blur. Views travel as bytes.       |
| `decoded`  | decodes                      | the whole augmentation                              |
| `resident` | names the images of a batch  | the whole augmentation. The data set is in memory.  |

`host` and `hybrid` need TensorFlow. `resident` takes any source whose images have one size and fit in memory. `decoded`
holds such images in the memory of the host. It decodes others in each epoch, into canvases of one size (canvas.py).
Then every view must begin with its crop.

`auto` is `host` on CPUs. Elsewhere it is `resident` for images of one size that take up to RESIDENT_BYTES. For others
it is `hybrid` on TPUs, whose hosts have cores enough, and `decoded` on GPUs, or `hybrid` there too where an operation
comes before a crop. Without TensorFlow it is `resident` or `decoded` everywhere. benchmarks/README.md has the figures.

All feeds draw from the same distributions but use different random numbers, except for `decoded` and `resident`, which
make the same views. A run that resumes with another feed sees other pixels from there on. The training is equivalent,
not identical.
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
from simclr_jax.data.canvas import CanvasBatches
from simclr_jax.data.reader import decode_all
from simclr_jax.data.resident import DecodedBatches, ResidentBatches
from simclr_jax.data.spec import (
    Batch,
    DataError,
    Decoded,
    Examples,
    FeedBatch,
    NotInMemory,
    Reading,
    Share,
    has_tensorflow,
    needs_tensorflow,
)

# Bytes on all devices together. A limit for each device would let the feed depend on their number.
RESIDENT_BYTES = 2 * 2**30
# Side of a canvas as a multiple of the views' side, rounded up to a multiple of pixels. It is 512 for views of 224:
# nine of ten images of ImageNet are not larger (benchmarks/README.md).
_CANVAS_SHARE, _CANVAS_STEP = 2.25, 64


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
    name = _without_data(config, platform or _platform(mesh))
    if name in ('host', 'hybrid'):
        with needs_tensorflow(f'data.feed={name}', 'choose data.feed=decoded'):
            import simclr_jax.data.pipeline  # noqa: F401
    if name == 'host' or wanted == 'hybrid':
        return _FEEDS[name](config, examples, mesh)
    try:
        examples = _in_memory(config, examples, _most_bytes(config, examples, name))
    except NotInMemory as error:
        if name == 'resident':
            raise
        if name == 'decoded':
            _check_canvas(config, error)
    content = examples.content
    if wanted == 'auto' and isinstance(content, Decoded) and content.images.nbytes <= RESIDENT_BYTES:
        name = 'resident'
    return _FEEDS[name](config, examples, mesh)


def _most_bytes(config: ConfigDict, examples: Examples, name: str) -> float:
    """Largest size of decoded images that a feed holds in memory."""
    if name == 'resident':
        return _free_bytes()
    if name == 'decoded':
        limit = max(config.data.memory_limit_gb * 2**30, RESIDENT_BYTES if config.data.feed == 'auto' else 0)
        return math.inf if isinstance(examples.content, Decoded) else limit
    # Hybrid, chosen here: only what becomes resident.
    return RESIDENT_BYTES


def _check_canvas(config: ConfigDict, reason: NotInMemory) -> None:
    """Raises DataError unless images that are not in memory can be cropped on canvases."""
    if not training_policy(config).begins_with_crops:
        views = f'augment.shared={config.augment.shared!r}, augment.views={config.augment.views}'
        raise DataError(
            f'{reason.fact}, and {views}: operations before the first crop need images of one size in memory; '
            'begin each view with its crop, or choose data.feed=hybrid'
        ) from reason


def plan_feed(config: ConfigDict, mesh: Mesh) -> Feed:
    """The feed of a configuration whose data is not here. `auto` is never resident then.

    Args:
        config: Checked configuration of a pretraining.
        mesh: Devices that would train.
    """
    return _FEEDS[_without_data(config, _platform(mesh))](config, None, mesh)


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


def _without_data(config: ConfigDict, platform: str) -> str:
    """What `data.feed` means for images of which nothing is known: never 'auto'."""
    if config.data.feed != 'auto':
        return config.data.feed
    if not has_tensorflow():
        return 'decoded'
    if platform == 'cpu':
        return 'host'
    return 'decoded' if platform == 'gpu' and training_policy(config).begins_with_crops else 'hybrid'


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
    # With an operation before the first crop, only images of one size in memory can be meant.
    is_planned_in_memory = examples is None and not training_policy(config).begins_with_crops
    if is_planned_in_memory or (examples is not None and isinstance(examples.content, Decoded)):
        return _of_arrays('decoded', config, examples, functools.partial(DecodedBatches, share=share))
    side = canvas_side(config)

    def batches(start_step: int) -> Iterator[Batch]:
        assert examples is not None, 'the feed is only planned'
        return CanvasBatches(
            examples,
            side,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=start_step,
            share=share,
            max_unreadable=config.data.max_unreadable,
            reading=_reading(config),
        )

    batch = _batch(config, 'images', (side, side, 3), np.uint8)
    batch['sizes'] = jax.ShapeDtypeStruct((config.batch_size, 4), np.float32)
    return Feed('decoded', make_views_of('images', training_policy(config)), batch, examples, batches)


def canvas_side(config: ConfigDict) -> int:
    """Height and width of the canvases of the feed `decoded`, in pixels."""
    chosen = config.data.canvas
    return chosen or _CANVAS_STEP * math.ceil(_CANVAS_SHARE * config.data.image_size / _CANVAS_STEP)


def _resident(config: ConfigDict, examples: Examples | None, mesh: Mesh) -> Feed:
    return _of_arrays('resident', config, examples, functools.partial(ResidentBatches, mesh=mesh))


def _of_arrays(
    name: str, config: ConfigDict, examples: Examples | None, make_batches: Callable[..., Iterator[FeedBatch]]
) -> Feed:
    """A feed of images in memory. The devices do the whole augmentation."""
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

    def batches(start_step: int) -> Iterator[Batch]:
        assert examples is not None, 'the feed is only planned'
        return host_batches(
            examples,
            policy,
            mesh,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=start_step,
            max_unreadable=config.data.max_unreadable,
            as_bytes=as_bytes,
            reading=_reading(config),
        )

    return batches


def _reading(config: ConfigDict) -> Reading:
    return Reading(config.data.threads, config.data.parallel_calls, config.data.prefetch)


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
