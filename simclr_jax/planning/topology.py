"""TPU slices: their chips, shapes and connections. This module does not import JAX."""

import dataclasses
import math
import re
from collections.abc import Mapping

from simclr_jax.chips import PEAK_FLOPS
from simclr_jax.config import ConfigError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation of TPU.

    Attributes:
        name: Name in a topology, for example 'v5e'.
        peak_flops: Peak of a chip, bfloat16 operations per second.
        memory_bytes: Main memory (HBM) of a chip that programs can use, in bytes.
        memory_bandwidth: Bandwidth of the main memory, bytes per second.
        link_bandwidth: Bandwidth of one link to a neighbour in one direction, bytes per second.
        clock: Clock of the matrix units, cycles per second. The compiler estimates in these cycles.
        cores: TensorCores per chip. A program sees them as one device.
        dimensions: Dimensions of the torus, 2 or 3.
        largest: Chips of the largest slice.
        compiler_options: Arguments of jax.experimental.topologies.get_topology_desc besides the name.
    """

    name: str
    peak_flops: float
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float
    clock: float
    cores: int
    dimensions: int
    largest: int
    compiler_options: Mapping[str, object] = dataclasses.field(default_factory=dict)


# Sources of the table:
# * Bandwidth of the memory, cores, sizes: cloud.google.com/tpu/docs/v4, v5e, v5p-training, v6e.
# * Memory: the size that libtpu 0.0.42 reports. It is at least a quarter of a GiB below the nominal 32, 16, 95, 32 GB.
# * Links: v5e 400, v5p 1200 and v6e 800 GB/s per chip, over 4, 6 and 4 links in two directions. The v4 value follows
#   from the 1.1 PB/s at which 4,096 chips with 6 links reduce.
# * Clock: peak / operations per cycle of a chip. A core has 4 matrix units with 2 x 128 x 128 operations per cycle
#   (v6e: 2 units with 2 x 2 x 256 x 256).
MEGACORE = {'chip_config_name': 'megacore'}
CHIPS = {
    chip.name: chip
    for chip in (
        Chip('v4', PEAK_FLOPS['TPU v4'], int(30.75 * GIB), 1200e9, 45e9, 1.05e9, 2, 3, 4096, MEGACORE),
        Chip('v5e', PEAK_FLOPS['TPU v5 lite'], int(15.75 * GIB), 819e9, 50e9, 1.5e9, 1, 2, 256),
        Chip('v5p', PEAK_FLOPS['TPU v5'], int(95.74 * GIB), 2765e9, 100e9, 1.75e9, 2, 3, 6144),
        Chip('v6e', PEAK_FLOPS['TPU v6 lite'], int(31.25 * GIB), 1638e9, 100e9, 1.75e9, 1, 2, 256),
    )
}
# The two-dimensional slices on offer, and the three-dimensional ones below a cube of 4 x 4 x 4.
PLANES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
PARTS_OF_A_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
# Chips per host in a slice of several hosts.
CHIPS_PER_HOST = 4
# The chips along a side of a plane form a ring from this length on. A shorter side is a line.
RING_OF_A_PLANE = 16


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: chips of one kind in a rectangle or a box.

    Attributes:
        chip: Kind of the chips.
        shape: Number of chips along each side.
    """

    chip: Chip
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f'{self.chip.name}:{"x".join(map(str, self.shape))}'

    @property
    def num_chips(self) -> int:
        """Number of chips. Each chip is one device."""
        return math.prod(self.shape)

    @property
    def num_hosts(self) -> int:
        """Number of hosts (virtual machines) with 4 chips each. 8 chips of v5e or v6e are also offered on one host."""
        return max(1, self.num_chips // CHIPS_PER_HOST)

    @property
    def compiler_options(self) -> dict[str, object]:
        """Arguments of get_topology_desc besides the name. A single chip is less than a whole host."""
        alone = {'chips_per_host_bounds': (1, 1, 1)} if self.num_chips == 1 else {}
        return {**self.chip.compiler_options, **alone}

    @property
    def links(self) -> int:
        """Links of the chip that has the fewest. A ring gives a chip two links, the end of a line gives it one."""
        if self.chip.dimensions == 2:
            rings = [side >= RING_OF_A_PLANE for side in self.shape]
        else:
            rings = [all(side % 4 == 0 for side in self.shape)] * len(self.shape)
        return sum(0 if side == 1 else 2 if ring else 1 for side, ring in zip(self.shape, rings, strict=True))

    @property
    def interconnect_bandwidth(self) -> float:
        """Bytes per second that every chip can send to all its neighbours at the same time. 0 for a single chip."""
        return self.links * self.chip.link_bandwidth


def parse_topology(text: str) -> Topology:
    """Reads the name of a TPU slice.

    Args:
        text: Kind of chip and shape, for example 'v5e:4x8' or 'v4:2x4x4'.

    Returns:
        The slice.

    Raises:
        ConfigError: The kind of chip is unknown, or no such slice is offered.

    Example:
        >>> topology = parse_topology('v5e:4x8')
        >>> topology.num_chips, topology.num_hosts
        (32, 8)
    """
    name, _, sides = text.partition(':')
    if name not in CHIPS:
        raise ConfigError(
            [f'--topology={text}: unknown chip {name!r}; choose from {", ".join(CHIPS)}, such as v5e:4x8']
        )
    chip = CHIPS[name]
    example = {2: '4x8', 3: '2x4x4'}[chip.dimensions]
    if not re.fullmatch(r'\d+(x\d+)*', sides) or len(sides.split('x')) != chip.dimensions:
        raise ConfigError(
            [f'--topology={text}: a {name} slice has {chip.dimensions} sides, for example {name}:{example}']
        )
    shape = tuple(map(int, sides.split('x')))
    if not _exists(chip, shape):
        raise ConfigError([f'--topology={text}: no such slice is offered; choose from {_offer(chip)}'])
    return Topology(chip, shape)


def _exists(chip: Chip, shape: tuple[int, ...]) -> bool:
    if chip.dimensions == 2:
        return shape in PLANES
    cubes = all(side % 4 == 0 and side > 0 for side in shape) and list(shape) == sorted(shape)
    return shape in PARTS_OF_A_CUBE or (cubes and math.prod(shape) <= chip.largest)


def _offer(chip: Chip) -> str:
    if chip.dimensions == 2:
        return ', '.join('x'.join(map(str, shape)) for shape in PLANES)
    parts = ', '.join('x'.join(map(str, shape)) for shape in PARTS_OF_A_CUBE)
    return f'{parts}, and multiples of 4 in ascending order up to {chip.largest:,} chips, such as 4x4x8'
