"""Compiles the training step of a configuration for some devices, without allocating anything on them."""

import dataclasses
import re
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from simclr_jax import sharding
from simclr_jax.build import make_program, make_schedule
from simclr_jax.data.feed import without_data
from simclr_jax.planning.flops import count_flops
from simclr_jax.planning.hlo import Collective, Fusion, Hlo
from simclr_jax.training.state import TrainState

# Of the instructions with an estimate, as many as a reader wants to see.
LARGEST_FUSIONS = 10
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30}
# 'Used 20.1G of 15.75G hbm', or '... (600.00G) exceeds available HBM (15.75G)'.
_OUT_OF_MEMORY = (
    re.compile(r'[Uu]sed ([\d.]+)([KMG]?) of ([\d.]+)([KMG]?) hbm'),
    re.compile(r'\(([\d.]+)([KMG]?)\) exceeds available HBM \(([\d.]+)([KMG]?)\)'),
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes a device.

    Attributes:
        arguments: state and batch as the compiler lays them out, padding included.
        temporaries: what lives within a step.
        outputs: results that do not take the place of an argument.
        code: the program.
    """

    arguments: int
    temporaries: int
    outputs: int
    code: int

    @property
    def total(self) -> int:
        """What a device must have."""
        return self.arguments + self.temporaries + self.outputs + self.code


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What tracing and compiling tell of one training step.

    Attributes:
        batch_size: images of the global batch.
        num_devices: that share it.
        arguments: bytes a device of 'parameters', 'statistics', 'optimizer' and 'batch', without padding.
        traced_flops: of convolutions and matrix products, on all devices together.
        needed_bytes: memory a device.
        limit_bytes: memory that the compiler found a device to have, where it ran out of it; None otherwise.
        memory: needed_bytes by kind; None, like all below, where it does not fit.
        flops: a device, the compiler's count; a loop's body counts once.
        memory_traffic: bytes a device reads from its main memory or writes to it.
        collectives: of one step.
        fusions: the costliest, where the compiler estimates cycles.
        cycles: the sum of all estimates.
        seconds: that compiling took.
    """

    batch_size: int
    num_devices: int
    arguments: dict[str, int]
    traced_flops: int
    needed_bytes: int
    limit_bytes: int | None
    seconds: float
    memory: Memory | None = None
    flops: float = 0.0
    memory_traffic: int = 0
    collectives: tuple[Collective, ...] = ()
    fusions: tuple[Fusion, ...] = ()
    cycles: int = 0

    def fits(self, limit: int) -> bool:
        """Whether a device with so many bytes has the memory for it."""
        return self.memory is not None and self.needed_bytes <= limit


def compile_step(config: ConfigDict, num_classes: int, num_images: int, devices: list[jax.Device]) -> Compiled:
    """Compiles the step of `simclr train` and reads what came out.

    Args:
        config: of the pretraining.
        num_classes: of the data, for the probe.
        num_images: of the data, for the schedule.
        devices: real ones, or those of a topology.

    Raises:
        ConfigError: the batch does not divide by the devices.
        RuntimeError: the compiler failed for another reason than memory.
    """
    schedule = make_schedule(config, num_images)
    feed = without_data(config.data.feed, devices[0].platform)
    program = make_program(config, num_classes, schedule, sharding.make_mesh(devices), feed)
    state, batch, key = program.abstract_arguments(config)
    started = time.perf_counter()
    traced = program.step.trace(state, batch, key)
    lowered = traced.lower()
    facts = {
        'batch_size': config.batch_size,
        'num_devices': len(devices),
        'arguments': _argument_bytes(state, batch),
        'traced_flops': count_flops(traced.jaxpr.jaxpr),
    }
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed, limit = out_of_memory(str(error))
        return Compiled(**facts, needed_bytes=needed, limit_bytes=limit, seconds=time.perf_counter() - started)
    return Compiled(**facts, **_read(compiled), seconds=time.perf_counter() - started)


def out_of_memory(message: str) -> tuple[int, int]:
    """(bytes needed, bytes there) of the compiler's message that a device's memory is too small.

    Raises:
        RuntimeError: it is about something else.
    """
    for pattern in _OUT_OF_MEMORY:
        if found := pattern.search(message):
            needed, needed_unit, limit, limit_unit = found.groups()
            return int(float(needed) * _UNITS[needed_unit]), int(float(limit) * _UNITS[limit_unit])
    raise RuntimeError(f'the compiler failed: {message}')


def _read(compiled: jax.stages.Compiled) -> dict:
    stats, cost = compiled.memory_analysis(), compiled.cost_analysis()
    memory = Memory(
        arguments=stats.argument_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )
    hlo = Hlo(compiled.as_text())
    fusions = hlo.fusions()
    return {
        'needed_bytes': memory.total,
        'limit_bytes': None,
        'memory': memory,
        'flops': cost.get('flops', 0.0),
        'memory_traffic': hlo.main_memory_traffic(),
        'collectives': tuple(hlo.collectives()),
        'fusions': tuple(fusions[:LARGEST_FUSIONS]),
        'cycles': sum(fusion.cycles * fusion.times for fusion in fusions),
    }


def _argument_bytes(state: TrainState, batch: dict[str, jax.ShapeDtypeStruct]) -> dict[str, int]:
    parts = {
        'parameters': state.params,
        'statistics': state.batch_stats,
        'optimizer': state.opt_state,
        'batch': batch,
    }
    return {name: sum(map(_device_bytes, jax.tree.leaves(part))) for name, part in parts.items()}


def _device_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    return int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
