"""Devices: the mesh, where arrays lie on it, and the way from the host's rows to global arrays."""

import functools
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# The one axis of the mesh: rows of the global batch lie along it.
DATA_AXIS = 'data'
# Elements of the smallest parameter that is worth dividing among devices: below, a message costs more than it saves.
DIVIDED_FROM = 4096


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """All devices (or the given ones) along the axis DATA_AXIS, with shardings left to the compiler."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The first dimension divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def stacked_by_rows(mesh: Mesh) -> NamedSharding:
    """Arrays with rows of several steps or parts, [n, B, ...]: the second dimension divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(None, DATA_AXIS))


def placed(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes and dtypes with the sharding of each: a description of global arrays.

    Args:
        shapes: Tree of arrays or `jax.ShapeDtypeStruct`.
        shardings: Tree of shardings of the same structure, or one sharding for all leaves.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, shardings
    )


def divided(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """A parameter's largest dimension that can be, divided among the devices; small ones are on each.

    Args:
        mesh: the devices.
        shape: of the parameter.
    """
    if math.prod(shape) < DIVIDED_FROM:
        return replicated(mesh)
    sizes = [size if size % mesh.size == 0 else 0 for size in shape]
    if not any(sizes):
        return replicated(mesh)
    dimension = max(range(len(shape)), key=sizes.__getitem__)
    return NamedSharding(mesh, PartitionSpec(*(DATA_AXIS if n == dimension else None for n in range(len(shape)))))


def gather(params: Any, shardings: Any) -> Any:
    """Parameters as they are needed: whole on every device; their gradients come back summed and divided again.

    Args:
        params: arrays.
        shardings: of each, as of `divided`.
    """

    def whole(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_replicated:
            return leaf
        return _whole(leaf, sharding)

    return jax.tree.map(whole, params, shardings)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _whole(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, replicated(sharding.mesh))


def _whole_forward(leaf, sharding):
    return _whole(leaf, sharding), None


def _whole_backward(sharding, _, gradient):
    # Of a plain constraint the gradient would be whole on every device too.
    return (jax.lax.with_sharding_constraint(gradient, sharding),)


_whole.defvjp(_whole_forward, _whole_backward)


def split_rows(tree: Any, parts: int, mesh: Mesh) -> Any:
    """Arrays [B, ...] -> [parts, B / parts, ...]: the rows of every device are cut, and stay on it."""

    def split(rows: jax.Array) -> jax.Array:
        rest = rows.shape[1:]
        rows = rows.reshape(mesh.size, parts, -1, *rest).swapaxes(0, 1).reshape(parts, -1, *rest)
        return jax.lax.with_sharding_constraint(rows, stacked_by_rows(mesh))

    return jax.tree.map(split, tree)


def join_rows(tree: Any, mesh: Mesh) -> Any:
    """Arrays [parts, B / parts, ...] -> [B, ...]: what `split_rows` has cut."""

    def join(rows: jax.Array) -> jax.Array:
        parts, rest = rows.shape[0], rows.shape[2:]
        rows = rows.reshape(parts, mesh.size, -1, *rest).swapaxes(0, 1).reshape(-1, *rest)
        return jax.lax.with_sharding_constraint(rows, by_rows(mesh))

    return jax.tree.map(join, tree)


def check_batch_size(batch_size: int, num_devices: int, field: str = 'batch_size') -> list[str]:
    """A message if so many images cannot be divided evenly among the devices; empty otherwise."""
    if batch_size % num_devices == 0:
        return []
    below = batch_size // num_devices * num_devices
    nearest = [size for size in (below, below + num_devices) if size > 1]
    return [f'{field}={batch_size} does not divide by {num_devices} devices; nearest: {", ".join(map(str, nearest))}']


def to_global(batch: dict[str, np.ndarray | jax.Array], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows -> arrays of the global batch, rows divided among the devices; global arrays stay."""

    def globally(rows: np.ndarray | jax.Array) -> jax.Array:
        is_there = isinstance(rows, jax.Array)
        return rows if is_there else jax.make_array_from_process_local_data(by_rows(mesh), rows)

    return jax.tree.map(globally, batch)


def to_host(rows: jax.Array) -> np.ndarray:
    """The whole of a global array, on every process; all of them have to ask for it."""
    if rows.is_fully_addressable or rows.is_fully_replicated:
        return np.asarray(rows)
    return multihost_utils.process_allgather(rows, tiled=True)
