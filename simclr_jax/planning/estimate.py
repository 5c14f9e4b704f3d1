"""From a compiled step and the facts of a chip to seconds, and to the largest batch that fits."""

import dataclasses
from collections.abc import Callable

from simclr_jax.planning.compiling import Compiled
from simclr_jax.planning.hlo import Collective
from simclr_jax.planning.topology import Topology

# Of a search: compilations after the configured batch's.
MAX_COMPILATIONS = 4


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of one training step.

    Attributes:
        compute: of convolutions and matrix products at the chip's peak.
        memory: of the main memory's traffic at its bandwidth.
        interconnect: of the collectives over the links of the chip that has the fewest.
        cycles: of the compiler's estimates at the chip's clock.
        step: cycles, or the larger of compute and memory if that is more; then the collectives, nothing of them hidden.
        bound: 'compute', 'memory' or 'interconnect': the largest of the three.
        utilization: share of the peak in a step.
    """

    compute: float
    memory: float
    interconnect: float
    cycles: float
    step: float
    bound: str
    utilization: float


def estimate(compiled: Compiled, topology: Topology) -> Estimate:
    """What a step that fits would take on a slice."""
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
        bound=max(parts, key=parts.get),
        utilization=parts['compute'] / step,
    )


def _link_seconds(collective: Collective, topology: Topology) -> float:
    """Every chip sends (n - 1) / n of what is gathered or scattered; a reduction is a scatter and a gather."""
    if topology.num_chips == 1:
        return 0.0
    passes = 2 if collective.kind == 'all-reduce' else 1
    sent = passes * collective.bytes * (topology.num_chips - 1) / topology.num_chips
    return sent / topology.interconnect_bandwidth


def largest_batch(
    first: Compiled, limit: int, granule: int, compile_batch: Callable[[int], Compiled]
) -> tuple[int, list[Compiled]]:
    """The largest global batch whose step fits, confirmed by compiling it.

    Memory grows nearly in proportion to the batch: a line through two batches foretells the answer, which is compiled;
    where it does not fit, the line through the nearest two foretells the next.

    Args:
        first: of the configured batch.
        limit: bytes of memory a device.
        granule: the batch is to be a multiple of so many images.
        compile_batch: compiles another batch.

    Returns:
        Images of the largest batch found to fit (0: none was), and all that was compiled for it.
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
    """Where the line through the two batches whose memory is nearest to the limit meets it."""
    a, b = sorted(done, key=lambda compiled: abs(compiled.needed_bytes - limit))[:2]
    slope = (a.needed_bytes - b.needed_bytes) / (a.batch_size - b.batch_size)
    return int(a.batch_size + (limit - a.needed_bytes) / slope) if slope > 0 else max(a.batch_size, b.batch_size)
