"""A whole data set in the memory of the devices: the host only says which images come next. No TensorFlow."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from simclr_jax import sharding
from simclr_jax.sharding import DATA_AXIS


class ResidentBatches(Iterator[dict[str, jax.Array]]):
    """Endless global batches of images as they are, {'images': uint8 [B, H, W, 3], 'label', 'mask', 'index'}.

    Or stacked batches of several steps, uint8 [n, B, H, W, 3] and so on, with the number of 'steps' to make of them.
    The images lie divided among the devices. Which of them stand in a batch follows from (seed, step) alone: the
    run's images form one endless row, and each epoch has a permutation of its own.

    Args:
        images: uint8 [N, H, W, 3].
        labels: int32 [N], -1: none.
        mesh: the devices.
        batch_size: B, a multiple of the devices.
        seed: of the order.
        start_step: the first batch is that of this step.
        most: steps whose batches are stacked, n; 1: none are.
        steps_from: step -> how many steps to make of these; needed where `most` is above 1.
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
        most: int = 1,
        steps_from: Callable[[int], int] | None = None,
    ):
        self._labels, self._mesh, self._batch_size, self._seed = labels, mesh, batch_size, seed
        self._step, self._most, self._steps_from = start_step, most, steps_from
        self._images = _divide(images, mesh)
        self._take = _make_take(mesh)

    def __next__(self) -> dict[str, jax.Array]:
        if self._most == 1:
            batch = self._batches(self._index(1)[0], sharding.by_rows(self._mesh))
            self._step += 1
            return batch
        steps = self._steps_from(self._step)
        batches = self._batches(self._index(self._most), sharding.stacked_by_rows(self._mesh))
        self._step += steps
        return batches | {'steps': _from_everywhere(np.int32(steps), sharding.replicated(self._mesh))}

    def _batches(self, index: np.ndarray, sharding: NamedSharding) -> dict[str, jax.Array]:
        rows = {'label': self._labels[index], 'mask': np.ones(index.shape, np.float32), 'index': index}
        batch = {name: _from_everywhere(values, sharding) for name, values in rows.items()}
        return batch | {'images': self._take(self._images, index)}

    def _index(self, steps: int) -> np.ndarray:
        """int32 [steps, B]: which images come next."""
        size, rows = len(self._labels), steps * self._batch_size
        epoch, rank = np.divmod(np.arange(rows) + self._step * self._batch_size, size)
        index = np.concatenate([_order(self._seed, int(e), size)[rank[epoch == e]] for e in np.unique(epoch)])
        return index.astype(np.int32).reshape(steps, -1)


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    """int64 [size]: the images of an epoch in their order."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def _divide(images: np.ndarray, mesh: Mesh) -> jax.Array:
    """Rows divided among the devices; empty images fill up the last one's share."""
    missing = -len(images) % mesh.size
    padded = np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else images
    return _from_everywhere(padded, sharding.by_rows(mesh))


def _from_everywhere(values: np.ndarray, sharding) -> jax.Array:
    """A global array of values that every process has whole."""
    return jax.make_array_from_callback(values.shape, sharding, lambda place: values[place])


def _make_take(mesh: Mesh):
    """The jitted function (images [N, H, W, 3] divided, index [..., B]) -> images [..., B, H, W, 3] divided by B."""

    def own(images: jax.Array, index: jax.Array) -> jax.Array:
        place = index - jax.lax.axis_index(DATA_AXIS) * len(images)
        is_here = (place >= 0) & (place < len(images))
        rows = images[jnp.clip(place, 0, len(images) - 1)] * is_here[..., None, None, None].astype(jnp.uint8)
        # Each row is zero on all devices but one.
        return jax.lax.psum_scatter(rows, DATA_AXIS, scatter_dimension=index.ndim - 1, tiled=True)

    def take(images: jax.Array, index: jax.Array) -> jax.Array:
        divided = PartitionSpec(*[None] * (index.ndim - 1), DATA_AXIS)
        specs = {'in_specs': (PartitionSpec(DATA_AXIS), PartitionSpec()), 'out_specs': divided}
        return jax.shard_map(own, mesh=mesh, **specs)(images, index)

    return jax.jit(take)
