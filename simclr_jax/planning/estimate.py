"""Estimates the duration of a compiled step from the facts of a chip, and finds the largest batch that fits."""

import dataclasses
from collections.abc import Callable

from simclr_jax.planning.compiling import Compiled
from simclr_jax.planning.hlo import Collective
from simclr_jax.planning.topology import Topology

# Compilations of a search for the largest batch, besides the one of the configured batch.
MAX_COMPILATIONS = 4


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Duration of one training step in seconds.

    Attributes:
        compute: Time of convolutions and matrix products at the peak of the chip.
        memory: Time of the traffic of the main memory at its bandwidth.
        interconnect: Time of the collectives over the links of the chip that has the fewest links.
        cycles: Time of the compiler's estimated cycles at the clock of the chip.
        step: The largest of cycles, compute and memory, plus interconnect. No collective is hidden behind computation.
        bound: 'compute', 'memory' or 'interconnect', whichever is the largest.
        utilization: compute / step, the used share of the peak.
    """

    compute: float
    memory: float
    interconnect: float
    cycles: float
    step: float
    bound: str
    utilization: float


def estimate(compiled: Compiled, topology: Topology) -> Estimate:
    """Estimates the duration of a step on a TPU slice.

    Args:
        compiled: Compiled step that fits into the memory.
        topology: The slice.
    """
    chip = topology.chip
    parts = {
        'compute': compiled.traced_flops / compiled.num_devices / chip.peak_flops,
        'memory': compiled.memory_traffic / chip.memory_bandwidth,
        'interconnect': sum(_link_seconds(collective, topology) for collective in compiled.collectives),
    }
    cycles = compiled.cycles / chip.clock
    step = max(cycles, parts['compute'], parts['memory']) + parts['interconnect']
    return Estimate(
        **parts,
        cycles=cycles,
        step=step,
        bound=max(parts, key=parts.__getitem__),
        utilization=parts['compute'] / step,
    )


def _link_seconds(collective: Collective, topology: Topology) -> float:
    """Seconds of one kind of collective.

    Every chip sends (n - 1) / n of the bytes that are gathered or scattered. A reduction is a scatter and a gather.
    """
    if topology.num_chips == 1:
        return 0.0
    passes = 2 if collective.kind == 'all-reduce' else 1
    sent = passes * collective.bytes * (topology.num_chips - 1) / topology.num_chips
    return sent / topology.interconnect_bandwidth


def largest_batch(
    first: Compiled, limit: int, granule: int, compile_batch: Callable[[int], Compiled]
) -> tuple[int, list[Compiled]]:
    """Finds the largest global batch whose step fits, and confirms it by compiling it.

    The memory grows nearly linearly with the batch. A line through two compiled batches predicts the largest batch,
    which is compiled next. Each further prediction uses the two batches whose memory is nearest to the limit.

    Args:
        first: Compiled step of the configured batch.
        limit: Memory per device in bytes.
        granule: The batch size is a multiple of this number of images.
        compile_batch: Compiles the step for another batch size.

    Returns:
        Images of the largest batch that was found to fit (0: none), and all compiled steps of the search.
    """
    done = [first]
    candidate = first.batch_size * 2 if first.needed_bytes * 2 < limit else first.batch_size // 2
    for _ in range(MAX_COMPILATIONS):
        candidate = max(granule, candidate // granule * granule)
        if any(compiled.batch_size == candidate for compiled in done):
            break
        done.append(compile_batch(candidate))
        candidate = _crossing(done, limit)
    fitting = [compiled.batch_size for compiled in done if compiled.fits(limit)]
    return max(fitting, default=0), done


def _crossing(done: list[Compiled], limit: int) -> int:
    """Predicts the batch size at the limit from the two batches whose memory is nearest to it."""
    a, b = sorted(done, key=lambda compiled: abs(compiled.needed_bytes - limit))[:2]
    slope = (a.needed_bytes - b.needed_bytes) / (a.batch_size - b.batch_size)
    return int(a.batch_size + (limit - a.needed_bytes) / slope) if slope > 0 else max(a.batch_size, b.batch_size)
