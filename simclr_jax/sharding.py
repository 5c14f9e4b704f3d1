"""The mesh of devices, the placement of arrays on it, and the conversion of a host's rows to global arrays."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

# The only axis of the mesh. It divides the rows of the global batch.
DATA_AXIS = 'data'
# Smallest number of elements of a divided parameter. For smaller ones the communication costs more than it saves.
DIVIDED_FROM = 4096


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    """Makes a mesh with the single axis DATA_AXIS. The compiler chooses the shardings inside of programs.

    Args:
        devices: Devices of the mesh. None: all devices of the job.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Sharding that keeps the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Sharding that divides the first dimension among the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def stacked_by_rows(mesh: Mesh) -> NamedSharding:
    """Sharding that divides the second dimension, for arrays with rows of n steps or parts, [n, B, ...]."""
    return NamedSharding(mesh, PartitionSpec(None, DATA_AXIS))


def placed(shapes: Any, shardings: Any) -> Any:
    """Describes global arrays: adds a sharding to each shape and dtype of a tree.

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
    """Sharding of a parameter that divides its largest dimension among the devices.

    Only a dimension that is a multiple of the number of devices can be divided. A parameter without such a dimension,
    or with fewer than DIVIDED_FROM elements, lies on every device.

    Args:
        mesh: Mesh of devices.
        shape: Shape of the parameter.
    """
    if math.prod(shape) < DIVIDED_FROM:
        return replicated(mesh)
    sizes = [size if size % mesh.size == 0 else 0 for size in shape]
    if not any(sizes):
        return replicated(mesh)
    dimension = max(range(len(shape)), key=sizes.__getitem__)
    return NamedSharding(mesh, PartitionSpec(*(DATA_AXIS if n == dimension else None for n in range(len(shape)))))


def gather(params: Any, shardings: Any) -> Any:
    """Gathers divided parameters for a computation, so that every device has them whole.

    Their gradients are summed over the devices and divided again.

    Args:
        params: Tree of parameters.
        shardings: Tree of their shardings, as from `divided`.
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
    # The gradient of a plain sharding constraint would be whole on every device.
    return (jax.lax.with_sharding_constraint(gradient, sharding),)


_whole.defvjp(_whole_forward, _whole_backward)


def split_rows(tree: Any, parts: int, mesh: Mesh) -> Any:
    """Splits the batch into parts, without moving rows between devices.

    Args:
        tree: Tree of arrays [B, ...], divided by rows.
        parts: Number of parts, which divides the rows of each device.
        mesh: Mesh of devices.

    Returns:
        Tree of arrays [parts, B / parts, ...]. Every part holds rows of every device.
    """

    def split(rows: jax.Array) -> jax.Array:
        rest = rows.shape[1:]
        rows = rows.reshape(mesh.size, parts, -1, *rest).swapaxes(0, 1).reshape(parts, -1, *rest)
        return jax.lax.with_sharding_constraint(rows, stacked_by_rows(mesh))

    return jax.tree.map(split, tree)


def join_rows(tree: Any, mesh: Mesh) -> Any:
    """Reverses `split_rows`: joins arrays [parts, B / parts, ...] to [B, ...]."""

    def join(rows: jax.Array) -> jax.Array:
        parts, rest = rows.shape[0], rows.shape[2:]
        rows = rows.reshape(parts, mesh.size, -1, *rest).swapaxes(0, 1).reshape(-1, *rest)
        return jax.lax.with_sharding_constraint(rows, by_rows(mesh))

    return jax.tree.map(join, tree)


def check_batch_size(batch_size: int, num_devices: int, field: str = 'batch_size') -> list[str]:
    """Checks that a batch can be divided evenly among the devices.

    Args:
        batch_size: Images per global batch.
        num_devices: Number of devices.
        field: Name of the checked field in the message.

    Returns:
        A list with one message, or an empty list.

    Example:
        >>> check_batch_size(100, 8)
        ['batch_size=100 does not divide by 8 devices; nearest: 96, 104']
    """
    if batch_size % num_devices == 0:
        return []
    below = batch_size // num_devices * num_devices
    nearest = [size for size in (below, below + num_devices) if size > 1]
    return [f'{field}={batch_size} does not divide by {num_devices} devices; nearest: {", ".join(map(str, nearest))}']


def to_global(batch: Mapping[str, np.ndarray | jax.Array], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays from the rows of this process.

    Args:
        batch: Arrays with the rows of this process, or arrays that are already global and stay as they are.
        mesh: Mesh of devices.

    Returns:
        Arrays of the global batch, whose rows are divided among the devices.
    """

    def globally(rows: np.ndarray | jax.Array) -> jax.Array:
        is_there = isinstance(rows, jax.Array)
        return rows if is_there else jax.make_array_from_process_local_data(by_rows(mesh), rows)

    return jax.tree.map(globally, batch)


def from_everywhere(values: np.ndarray, place: NamedSharding) -> jax.Array:
    """Makes a global array of values that every process holds in full.

    `jax.device_put` would do the same, but it first compares the values of all processes, which takes an exchange.

    Args:
        values: The whole array, equal in all processes.
        place: Sharding of the result.
    """
    return jax.make_array_from_callback(values.shape, place, lambda part: values[part])


def to_host(rows: jax.Array) -> np.ndarray:
    """Copies a whole global array to the host of every process. All processes must make the call."""
    if rows.is_fully_addressable or rows.is_fully_replicated:
        return np.asarray(rows)
    return multihost_utils.process_allgather(rows, tiled=True)
