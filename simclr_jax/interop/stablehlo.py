"""StableHLO: the network as a program that JAX, and everything else on XLA, runs on CPUs, NVIDIA GPUs and TPUs."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from flax import traverse_util
from jax import export
from jaxlib.mlir.dialects import stablehlo

from simclr_jax.config import ConfigError
from simclr_jax.interop.exported import Exported
from simclr_jax.interop.extras import needs_extra

FILE = 'model.stablehlo'
PLATFORMS = ('cpu', 'cuda', 'tpu')
# Bytes of weights, with room for the program.
_MOST = 2**31 - 2**27


def write(network: Exported, directory: epath.Path) -> None:
    """Writes model.stablehlo: float32 images [N, S, S, 3] in [0, 1] -> {'representation': [N, F], ...}, for any N.

    S is the image size of the run. The weights are a part of the file.

    Args:
        network: Network to write.
        directory: Existing directory.

    Raises:
        ConfigError: The package flatbuffers is not installed, or the network is too large.
    """
    with needs_extra('flatbuffers'):
        import flatbuffers  # noqa: F401
    weights = sum(array.nbytes for array in network.variables.values())
    if weights > _MOST:
        raise ConfigError(
            [
                f'--format=stablehlo: the network has {weights / 2**30:.1f} GiB of weights, and such a file holds at '
                'most 2 GiB with the program; choose --format=safetensors, onnx or saved_model'
            ]
        )
    size = network.image_size
    variables = traverse_util.unflatten_dict(network.variables)
    images = jax.ShapeDtypeStruct((*export.symbolic_shape('n'), size, size, 3), np.float32)
    # Without the barrier the compiler spends minutes on products of weights alone.
    program = jax.jit(lambda images: network.apply(jax.lax.optimization_barrier(variables), images))
    exported = _for_older_readers(export.export(program, platforms=PLATFORMS)(images))
    (directory / FILE).write_bytes(bytes(exported.serialize()))


def _for_older_readers(exported: export.Exported) -> export.Exported:
    """The same program for readers of the last twelve weeks. JAX itself writes for those of the last four."""
    version = stablehlo.get_version_from_compatibility_requirement(stablehlo.StablehloCompatibilityRequirement.WEEK_12)
    content = stablehlo.serialize_portable_artifact_str(exported.mlir_module(), version)
    return dataclasses.replace(exported, mlir_module_serialized=content)


def load(directory: epath.Path) -> tuple[str, Callable[[np.ndarray], dict[str, np.ndarray]]]:
    """Loads model.stablehlo anew. Returns what runs it, and the function of images [N, S, S, 3]."""
    program = export.deserialize(bytearray((directory / FILE).read_bytes()))
    return f'JAX {jax.__version__}', lambda images: jax.device_get(program.call(images))
