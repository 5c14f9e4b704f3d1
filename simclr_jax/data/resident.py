"""A whole data set in the memory of the devices: the host only says which images come next. No TensorFlow."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from simclr_jax import parallel
from simclr_jax.parallel import DATA_AXIS


class ResidentBatches(Iterator[dict[str, jax.Array]]):
    """Endless global batches of images as they are, {'images': uint8 [B, H, W, 3], 'label', 'mask', 'index'}.

    The images lie divided among the devices. Which of them stand in a batch follows from (seed, step) alone: the
    run's images form one endless row, and each epoch has a permutation of its own.

    Args:
        images: uint8 [N, H, W, 3].
        labels: int32 [N], -1: none.
        mesh: the devices.
        batch_size: B, a multiple of the devices.
        seed: of the order.
        start_step: the first batch is that of this step.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        mesh: Mesh,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
    ):
        self._labels, self._mesh, self._batch_size, self._seed = labels, mesh, batch_size, seed
        self._step = start_step
        self._images = _divide(images, mesh)
        self._take = _make_take(mesh)

    def __next__(self) -> dict[str, jax.Array]:
        index = self._next_index()
        rows = {
            'label': self._labels[index],
            'mask': np.ones(len(index), np.float32),
            'index': index.astype(np.int32),
        }
        batch = {name: _from_everywhere(values, parallel.by_rows(self._mesh)) for name, values in rows.items()}
        return batch | {'images': self._take(self._images, rows['index'])}

    def _next_index(self) -> np.ndarray:
        """int64 [B]: which images come next."""
        size = len(self._labels)
        epoch, rank = np.divmod(np.arange(self._batch_size) + self._step * self._batch_size, size)
        self._step += 1
        return np.concatenate([_order(self._seed, int(e), size)[rank[epoch == e]] for e in np.unique(epoch)])


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    """int64 [size]: the images of an epoch in their order."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def _divide(images: np.ndarray, mesh: Mesh) -> jax.Array:
    """Rows divided among the devices; empty images fill up the last one's share."""
    missing = -len(images) % mesh.size
    padded = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else images
    return _from_everywhere(padded, parallel.by_rows(mesh))


def _from_everywhere(values: np.ndarray, sharding) -> jax.Array:
    """A global array of values that every process has whole."""
    return jax.make_array_from_callback(values.shape, sharding, lambda place: values[place])


def _make_take(mesh: Mesh):
    """The jitted function (images [N, H, W, 3] divided, index [B]) -> images [B, H, W, 3] divided."""

    def own(images: jax.Array, index: jax.Array) -> jax.Array:
        place = index - jax.lax.axis_index(DATA_AXIS) * len(images)
        is_here = (place >= 0) & (place < len(images))
        rows = jnp.where(is_here[:, None, None, None], images[jnp.clip(place, 0, len(images) - 1)], jnp.uint8(0))
        # Each row is zero on all devices but one.
        return jax.lax.psum_scatter(rows, DATA_AXIS, scatter_dimension=0, tiled=True)

    return jax.jit(
        jax.shard_map(
            own, mesh=mesh, in_specs=(PartitionSpec(DATA_AXIS), PartitionSpec()), out_specs=PartitionSpec(DATA_AXIS)
        )
    )
