"""A whole decoded data set in memory: of the devices (resident), or of each process (decoded). No TensorFlow.

The images of a batch follow from (seed, step) alone: the images of a run form one endless row, and each epoch has its
own permutation.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from simclr_jax import sharding
from simclr_jax.data.spec import Batch, Share
from simclr_jax.sharding import DATA_AXIS


class ResidentBatches(Iterator[dict[str, jax.Array]]):
    """Endless global batches of unchanged images, {'images': uint8 [B, H, W, 3], 'label', 'mask', 'index'}.

    The images lie divided among the devices.

    Args:
        images: uint8 [N, H, W, 3].
        labels: int32 [N]; -1 means that an image has none.
        mesh: Devices that hold the images.
        batch_size: B, a multiple of the number of devices.
        seed: Seed of the order.
        start_step: Step of the first batch.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, mesh: Mesh, *, batch_size: int, seed: int, start_step: int = 0
    ):
        self._labels, self._mesh, self._batch_size, self._seed = labels, mesh, batch_size, seed
        self._step = start_step
        self._images = _divide(images, mesh)
        self._take = _make_take(mesh)

    def __next__(self) -> dict[str, jax.Array]:
        index = images_of_step(self._step, self._batch_size, self._seed, len(self._labels))
        self._step += 1
        rows = {'label': self._labels[index], 'mask': np.ones(index.shape, np.float32), 'index': index}
        by_rows = sharding.by_rows(self._mesh)
        batch = {name: sharding.from_everywhere(values, by_rows) for name, values in rows.items()}
        return batch | {'images': self._take(self._images, index)}


class DecodedBatches(Iterator[Batch]):
    """Endless batches of unchanged images, the rows of one process. The images stay in the memory of the host.

    The global batches are those of `ResidentBatches`.

    Args:
        images: uint8 [N, H, W, 3].
        labels: int32 [N]; -1 means that an image has none.
        batch_size: Images per global batch, a multiple of share.count.
        seed: Seed of the order.
        start_step: Step of the first batch.
        share: Rows of this process.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        share: Share = Share(),
    ):
        self._images, self._labels, self._batch_size, self._seed = images, labels, batch_size, seed
        self._step, self._rows = start_step, share.rows(batch_size)

    def __next__(self) -> Batch:
        index = images_of_step(self._step, self._batch_size, self._seed, len(self._labels))
        index = index[self._rows.start : self._rows.stop]
        self._step += 1
        mask = np.ones(index.shape, np.float32)
        return {'images': self._images[index], 'label': self._labels[index], 'mask': mask, 'index': index}


def images_of_step(step: int, batch_size: int, seed: int, size: int) -> np.ndarray:
    """The images of a global batch.

    Args:
        step: Step of the batch, from 0.
        batch_size: Images per global batch B.
        seed: Seed of the order.
        size: Number of images in the split.

    Returns:
        Indices of the images, int32 [B].
    """
    positions = np.arange(batch_size) + step * batch_size
    return images_at_positions(positions, seed, size, np.zeros(1, np.int64))[:, 0].astype(np.int32)


def images_at_positions(positions: np.ndarray, seed: int, size: int, aside: np.ndarray) -> np.ndarray:
    """The images at some positions of a run's endless row, and others of the same epochs.

    Args:
        positions: Positions, int64 [R]. Position n is rank n % size of epoch n // size.
        seed: Seed of the order.
        size: Number of images in the split.
        aside: Distances to the ranks of the other images, int64 [T]. Ranks go on at the epoch's beginning.

    Returns:
        Indices of the images, int64 [R, T].
    """
    epoch, rank = np.divmod(positions, size)
    ranks = (rank[:, np.newaxis] + aside) % size
    index = np.empty_like(ranks)
    for number in np.unique(epoch):
        is_in = epoch == number
        index[is_in] = _order(seed, int(number), size)[ranks[is_in]]
    return index


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    """int64 [size]: the images of an epoch in their order."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def _divide(images: np.ndarray, mesh: Mesh) -> jax.Array:
    """Rows divided among the devices. Empty images fill up the share of the last device."""
    missing = -len(images) % mesh.size
    padded = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else images
    return sharding.from_everywhere(padded, sharding.by_rows(mesh))


def _make_take(mesh: Mesh):
    """The jitted function (images [N, H, W, 3] divided, index [B]) -> images [B, H, W, 3] divided."""

    def own(images: jax.Array, index: jax.Array) -> jax.Array:
        place = index - jax.lax.axis_index(DATA_AXIS) * len(images)
        is_here = (place >= 0) & (place < len(images))
        rows = images[jnp.clip(place, 0, len(images) - 1)] * is_here[:, None, None, None].astype(jnp.uint8)
        # Each row is zero on all devices but one.
        return jax.lax.psum_scatter(rows, DATA_AXIS, scatter_dimension=0, tiled=True)

    divided = PartitionSpec(DATA_AXIS)
    return jax.jit(jax.shard_map(own, mesh=mesh, in_specs=(divided, PartitionSpec()), out_specs=divided))
