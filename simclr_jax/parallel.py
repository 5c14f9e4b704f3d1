"""Devices: the mesh, where arrays lie on it, and the way from the host's rows to global arrays."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# The one axis of the mesh: rows of the global batch lie along it.
DATA_AXIS = 'data'


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


def check_batch_size(batch_size: int, num_devices: int) -> list[str]:
    """A message if a global batch cannot be divided evenly among the devices; empty otherwise."""
    if batch_size % num_devices == 0:
        return []
    below = batch_size // num_devices * num_devices
    nearest = [size for size in (below, below + num_devices) if size > 1]
    return [
        f'batch_size={batch_size} does not divide by {num_devices} devices; nearest: {", ".join(map(str, nearest))}'
    ]


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows -> arrays of the global batch, rows divided among the devices."""
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(by_rows(mesh), rows), batch)
