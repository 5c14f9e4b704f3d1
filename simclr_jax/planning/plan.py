"""A plan: memory and duration of a configured training run on given devices."""

import dataclasses
import math
from collections.abc import Callable

import jax
import psutil
from ml_collections import ConfigDict

from simclr_jax.build import check_batch, make_schedule
from simclr_jax.config import ConfigError, with_values
from simclr_jax.planning import process
from simclr_jax.planning.compiling import Compiled, compile_step
from simclr_jax.planning.estimate import Estimate, estimate, largest_batch
from simclr_jax.planning.topology import Topology

# (images of the training split, classes) of data sets that are rarely on the machine that makes a plan.
KNOWN_DATA = {'imagenet2012': (1_281_167, 1000)}
# The largest batch is a multiple of this number of images per device, the rows of a TPU's tile.
ROWS = 8


@dataclasses.dataclass(frozen=True)
class Plan:
    """Memory and duration of a training run.

    Attributes:
        devices: Name of the devices, such as 'v5e:4x8' or '8 x cpu'.
        num_hosts: Hosts that feed the devices.
        limit_bytes: Memory per device in bytes.
        compiled: Compiled step of the configured batch.
        num_images: Images of the training split.
        total_steps: Steps of the configured run.
        estimate: Estimated duration of a step. None if the step does not fit, or for the devices of this machine.
        largest_batch: Images of the largest batch that fits, 0 if none fits. None if it was not searched for.
        tried: Compiled steps of the search.
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
        """Whether the step fits into the memory of a device."""
        return self.compiled.fits(self.limit_bytes)

    @property
    def images_per_second(self) -> float:
        """Estimated images per second over all devices."""
        assert self.estimate is not None, 'this plan has no estimate'
        return self.compiled.batch_size / self.estimate.step

    @property
    def epoch_seconds(self) -> float:
        """Estimated duration of one pass over the images, in seconds."""
        return self.num_images / self.images_per_second

    @property
    def hours(self) -> float:
        """Estimated duration of all steps in hours, without evaluations and checkpoints."""
        assert self.estimate is not None, 'this plan has no estimate'
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
    """Compiles the training step for a TPU slice or for the devices of this machine, and makes a plan of the run.

    Args:
        config: Configuration of the pretraining.
        topology: TPU slice. None: the devices of this machine.
        num_images: Images of the training split.
        num_classes: Classes of the training data. 0: no probe.
        search: Whether to search for the largest batch that fits, in further compilations.
        say: Prints a message before and after each compilation, and before a download.

    Returns:
        The plan.

    Raises:
        ConfigError: The configuration does not fit the devices, or libtpu cannot be installed.
        RuntimeError: The compiler failed.
    """
    num_devices = topology.num_chips if topology else jax.device_count()
    # The step would refuse it too, but only after the TPU compiler is fetched.
    check_batch(config, num_devices)
    total_steps = make_schedule(config, num_images).total_steps

    def compile_batch(batch_size: int) -> Compiled:
        changed = with_values(config, {'batch_size': batch_size})
        say(f'Compiling the step of {batch_size:,} images for {devices} ...')
        if topology:
            found = process.compile_for(topology, changed, num_classes, num_images, say)
        else:
            found = compile_step(changed, num_classes, num_images, jax.devices())
        say(f'Compiled in {found.seconds:.0f} s.')
        return found

    devices = str(topology) if topology else f'{num_devices} x {jax.devices()[0].device_kind}'
    compiled = compile_batch(config.batch_size)
    limit = compiled.limit_bytes or (topology.chip.memory_bytes if topology else _local_memory())
    granule = math.lcm(num_devices * ROWS, config.microbatch or 1)
    largest, tried = largest_batch(compiled, limit, granule, compile_batch) if search else (None, ())
    return Plan(
        devices=devices,
        num_hosts=topology.num_hosts if topology else jax.process_count(),
        limit_bytes=limit,
        compiled=compiled,
        num_images=num_images,
        total_steps=total_steps,
        estimate=estimate(compiled, topology) if topology and compiled.fits(limit) else None,
        largest_batch=largest,
        tried=tuple(tried),
    )


def training_data(config: ConfigDict, num_images: int) -> tuple[int, int]:
    """Counts the images and classes of the training split.

    Args:
        config: Configuration of the pretraining.
        num_images: Number of images as the user gives it. Then the data need not be on this machine, and there are
            no classes and no probe unless the data set is in KNOWN_DATA. 0: read the data.

    Returns:
        Number of images and number of classes.

    Raises:
        ConfigError: The data is not on this machine, and no number is given.
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
            [*str(error).splitlines(), 'a plan needs only the number of training images; give it by --images=N']
        ) from error
    return examples.size, examples.num_classes


def _local_memory() -> int:
    """Memory of the first device in bytes. Virtual devices of a CPU share the memory of the machine."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get('bytes_limit', psutil.virtual_memory().total // jax.local_device_count())
