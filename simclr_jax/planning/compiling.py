"""Compiles the training step of a configuration for given devices, without allocating anything on them."""

import dataclasses
import re
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from simclr_jax import sharding
from simclr_jax.build import make_program, make_schedule
from simclr_jax.data.feed import plan_feed
from simclr_jax.planning.flops import count_flops
from simclr_jax.planning.hlo import Collective, Fusion, Hlo
from simclr_jax.trained import open_teacher
from simclr_jax.training.state import TrainState

# Number of instructions that a plan lists, the costliest ones.
LARGEST_FUSIONS = 10
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30}
# The compiler's two messages: 'Used 20.1G of 15.75G hbm' and '... (600.00G) exceeds available HBM (15.75G)'.
_OUT_OF_MEMORY = (
    re.compile(r'[Uu]sed ([\d.]+)([KMG]?) of ([\d.]+)([KMG]?) hbm'),
    re.compile(r'\(([\d.]+)([KMG]?)\) exceeds available HBM \(([\d.]+)([KMG]?)\)'),
)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory per device in bytes.

    Attributes:
        arguments: State and batch in the layout of the compiler, including padding.
        temporaries: Arrays that exist only during a step.
        outputs: Results that do not reuse the memory of an argument.
        code: The program itself.
    """

    arguments: int
    temporaries: int
    outputs: int
    code: int

    @property
    def total(self) -> int:
        """All memory that a device needs, in bytes."""
        return self.arguments + self.temporaries + self.outputs + self.code


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Facts about one training step, from tracing and compiling it.

    Attributes:
        batch_size: Images per global batch.
        num_devices: Devices that share the batch.
        arguments: Bytes per device of 'parameters', 'statistics', 'optimizer' and 'batch', without padding.
        traced_flops: Operations of convolutions and matrix products, over all devices.
        needed_bytes: Memory per device in bytes.
        limit_bytes: Memory of a device in bytes, as the compiler reports it if the step does not fit. Otherwise None.
        seconds: Duration of the compilation.
        memory: The parts of needed_bytes. This field and all below have no value if the step does not fit.
        flops: Operations per device as the compiler counts them. The body of a loop counts once.
        memory_traffic: Bytes that a device reads from its main memory or writes to it.
        collectives: Communication of one step.
        fusions: The costliest instructions, if the compiler estimates cycles.
        cycles: Sum of all estimates.
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
        """Whether the step fits into `limit` bytes of memory per device."""
        return self.memory is not None and self.needed_bytes <= limit


def compile_step(
    config: ConfigDict,
    num_classes: int,
    num_images: int,
    devices: list[jax.Device],  # pyright: ignore[reportInvalidTypeForm]
) -> Compiled:
    """Compiles the training step of `simclr train` and reads the facts of the compiled program.

    Args:
        config: Configuration of the pretraining.
        num_classes: Classes of the data, for the probe. 0: no probe.
        num_images: Images of the training split, for the schedule.
        devices: Devices of this machine, or the described ones of a topology.

    Returns:
        The facts, also if the step does not fit into the memory.

    Raises:
        ConfigError: The batch size is not a multiple of the number of devices.
        RuntimeError: The compiler failed for another reason than memory.
    """
    schedule = make_schedule(config, num_images)
    mesh = sharding.make_mesh(devices)
    program = make_program(config, num_classes, schedule, mesh, plan_feed(config, mesh), open_teacher(config))
    state, batch, key = program.abstract_arguments()
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
    """Reads the compiler's message that the memory of a device is too small.

    Args:
        message: Error message of the compiler.

    Returns:
        Bytes that the program needs and bytes that the device has.

    Raises:
        RuntimeError: The message is about another failure.
    """
    for pattern in _OUT_OF_MEMORY:
        if found := pattern.search(message):
            needed, needed_unit, limit, limit_unit = found.groups()
            return int(float(needed) * _UNITS[needed_unit]), int(float(limit) * _UNITS[limit_unit])
    raise RuntimeError(f'the compiler failed: {message}')


def _read(compiled: jax.stages.Compiled) -> dict:
    stats, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    assert stats is not None, 'the compiler gives no memory analysis'
    assert cost is not None, 'the compiler gives no cost analysis'
    assert text is not None, 'the compiler gives no text'
    memory = Memory(
        arguments=stats.argument_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )
    hlo = Hlo(text)
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
