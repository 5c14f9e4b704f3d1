"""StableHLO: the network as a program that JAX, and everything else on XLA, runs on CPUs, NVIDIA GPUs and TPUs."""

from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from flax import traverse_util
from jax import export

from simclr_jax.interop.exported import Exported
from simclr_jax.interop.extras import needs_extra

FILE = 'model.stablehlo'
PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(network: Exported, directory: epath.Path) -> None:
    """Writes model.stablehlo: float32 images [N, S, S, 3] in [0, 1] -> {'representation': [N, F], ...}, for any N.

    S is the image size of the run. The weights are a part of the file.

    Args:
        network: Network to write.
        directory: Existing directory.

    Raises:
        ConfigError: The package flatbuffers is not installed.
    """
    with needs_extra('flatbuffers'):
        import flatbuffers  # noqa: F401
    size = network.image_size
    variables = traverse_util.unflatten_dict(network.variables)
    images = jax.ShapeDtypeStruct((*export.symbolic_shape('n'), size, size, 3), np.float32)
    # Without the barrier the compiler spends minutes on products of weights alone.
    program = jax.jit(lambda images: network.apply(jax.lax.optimization_barrier(variables), images))
    (directory / FILE).write_bytes(bytes(export.export(program, platforms=PLATFORMS)(images).serialize()))


def load(directory: epath.Path) -> tuple[str, Callable[[np.ndarray], dict[str, np.ndarray]]]:
    """Loads model.stablehlo anew. Returns what runs it, and the function of images [N, S, S, 3]."""
    program = export.deserialize(bytearray((directory / FILE).read_bytes()))
    return f'JAX {jax.__version__}', lambda images: jax.device_get(program.call(images))
