"""A plan: the configured training run on given devices, its needs and its length."""

import dataclasses
import math
from collections.abc import Callable

import jax
import psutil
from ml_collections import ConfigDict

from simclr_jax import sharding
from simclr_jax.build import make_schedule
from simclr_jax.config import ConfigError
from simclr_jax.planning import process
from simclr_jax.planning.compiling import Compiled, compile_step
from simclr_jax.planning.estimate import Estimate, estimate, largest_batch
from simclr_jax.planning.topology import Topology

# (images of the training split, classes) of data sets that rarely lie where a plan is made.
KNOWN_DATA = {'imagenet2012': (1_281_167, 1000)}
# The largest batch is a multiple of so many images a device: the rows of a TPU's tiles.
ROWS = 8


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is found out about a run.

    Attributes:
        devices: as 'v5e:4x8' or '8 x cpu'.
        num_hosts: that feed them.
        limit_bytes: memory a device.
        compiled: the step of the configured batch.
        num_images: of the training split.
        total_steps: of the configured run.
        estimate: None where the step does not fit, or the chip is not in the table.
        largest_batch: None: not asked for; 0: none fits.
        tried: the steps compiled to find it.
    """

    devices: str
    num_hosts: int
    limit_bytes: int
    compiled: Compiled
    num_images: int
    total_steps: int
    estimate: Estimate | None
    largest_batch: int | None = None
    tried: tuple[Compiled, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether a device has the memory for the step."""
        return self.compiled.fits(self.limit_bytes)

    @property
    def images_per_second(self) -> float:
        """Of all devices, by the estimate."""
        return self.compiled.batch_size / self.estimate.step

    @property
    def epoch_seconds(self) -> float:
        """Of one pass over the images, by the estimate."""
        return self.num_images / self.images_per_second

    @property
    def hours(self) -> float:
        """Of all steps, by the estimate; without evaluations and checkpoints."""
        return self.total_steps * self.estimate.step / 3600


def make_plan(
    config: ConfigDict,
    topology: Topology | None,
    *,
    num_images: int,
    num_classes: int,
    search: bool,
    say: Callable[[str], None],
) -> Plan:
    """Compiles the training step, for a slice or for the machine's own devices, and says what comes of it.

    Args:
        config: of the pretraining.
        topology: the slice; None: the devices that are here.
        num_images, num_classes: of the training data.
        search: also look for the largest batch that fits, which takes some more compilations.
        say: told what takes long.

    Raises:
        ConfigError: something that the user has to change.
        RuntimeError: the compiler failed.
    """
    num_devices = topology.num_chips if topology else jax.device_count()
    _check_batch(config, num_devices)
    total_steps = make_schedule(config, num_images).total_steps

    def compile_batch(batch_size: int) -> Compiled:
        changed = config.copy_and_resolve_references().unlock()
        changed.batch_size = batch_size
        say(f'Compiling the step of {batch_size:,} images ...')
        if topology:
            return process.compile_for(topology, changed.lock(), num_classes, num_images, say)
        return compile_step(changed.lock(), num_classes, num_images, jax.devices())

    compiled = compile_batch(config.batch_size)
    limit = compiled.limit_bytes or (topology.chip.memory_bytes if topology else _local_memory(jax.devices()[0]))
    granule = math.lcm(num_devices * ROWS, config.microbatch or 1)
    largest, tried = largest_batch(compiled, limit, granule, compile_batch) if search else (None, ())
    return Plan(
        devices=str(topology) if topology else f'{num_devices} x {jax.devices()[0].device_kind}',
        num_hosts=topology.num_hosts if topology else jax.process_count(),
        limit_bytes=limit,
        compiled=compiled,
        num_images=num_images,
        total_steps=total_steps,
        estimate=estimate(compiled, topology) if topology and compiled.fits(limit) else None,
        largest_batch=largest,
        tried=tuple(tried),
    )


def _check_batch(config: ConfigDict, num_devices: int) -> None:
    """What the step would refuse too, but only after the TPU compiler is fetched."""
    problems = sharding.check_batch_size(config.batch_size, num_devices)
    if config.microbatch:
        problems += sharding.check_batch_size(config.microbatch, num_devices, 'microbatch')
    if problems:
        raise ConfigError(problems)


def training_data(config: ConfigDict, num_images: int) -> tuple[int, int]:
    """(images, classes) of the training split.

    Args:
        config: of the pretraining.
        num_images: what the user says, who then needs no data here (nor a probe, unless the data set is known);
            0: to be found out.

    Raises:
        ConfigError: the data is not here and nothing is said.
    """
    known = KNOWN_DATA.get(config.data.name.partition(':')[0]) if config.data.source == 'tfds' else None
    if known and config.data.split == 'train':
        return num_images or known[0], known[1]
    if num_images:
        return num_images, 0
    from simclr_jax.data.sources import load_examples, without_multi_labels
    from simclr_jax.data.spec import DataError

    try:
        examples = without_multi_labels(load_examples(config.data, config.data.split))
    except DataError as error:
        raise ConfigError(
            [*str(error).splitlines(), 'a plan needs only the number of training images: --images=N']
        ) from error
    return examples.size, examples.num_classes


def _local_memory(device: jax.Device) -> int:
    """Bytes that a device has; virtual devices of a CPU share the machine's."""
    stats = device.memory_stats() or {}
    return stats.get('bytes_limit', psutil.virtual_memory().total // jax.local_device_count())
