"""The story of `simclr export`: write a network, load the file anew, compare, and only then put it in its place."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from simclr_jax.config import ConfigError
from simclr_jax.data.spec import needs_tensorflow
from simclr_jax.interop import card
from simclr_jax.interop.exported import Exported, open_exported
from simclr_jax.interop.imported import (
    ROUNDING,
    SHAPES,
    TOLERANCE,
    CheckError,
    all_within,
    check_outputs,
    fixed_images,
    largest_difference,
)
from simclr_jax.interop.places import check_new, new_directory

FORMATS = ('safetensors', 'torchvision', 'timm', 'saved_model', 'stablehlo', 'onnx')
_MODULES = {'saved_model': 'saved_model', 'stablehlo': 'stablehlo', 'onnx': 'onnx_out'}
# A file may be further from our network in float64 than TOLERANCE, if our own float32 is nearly as far.
_ROUNDINGS = 4
# No file may be further than this.
_MOST = 1e-2

Compute = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Check:
    """Comparison of an exported file with our network.

    Attributes:
        runner: What has run the file.
        differences: For each output, the largest difference as a share of the largest entry.
        limit: Largest difference that is allowed, TOLERANCE unless float32 itself is further from float64.
    """

    runner: str
    differences: dict[str, float]
    limit: float

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        found = ', '.join(f'{name} {value:.1e}' for name, value in self.differences.items())
        return (
            f'The file was loaded anew and computed with {self.runner}. Largest difference from the network, as a '
            f'share of the largest entry: {found}. Allowed: {self.limit:.0e}.'
        )


def export(directory: str, kind: str, out: str, say: Callable[[str], None] = print) -> Check:
    """Exports the newest checkpoint of a work directory, or of a training in it.

    Args:
        directory: Work directory, or its sub-directory trained/NAME of a classifier.
        kind: One of FORMATS.
        out: Directory to make, local or gs://. It must not exist, or be empty.
        say: Function that receives lines for the user.

    Returns:
        The comparison of the written file with our network.

    Raises:
        ConfigError, CheckpointError: The user has to change something.
        CheckError: The file computes something else than our network. Nothing is left at `out`.
    """
    if kind not in FORMATS:
        raise ConfigError([f'--format={kind}: choose from {", ".join(FORMATS)}'])
    place = check_new(out)
    network = open_exported(directory, say)
    write, load = _format(kind)
    if kind in ('torchvision', 'timm'):
        network = network.without_head()
    with new_directory(place) as made:
        write(network, made)
        shape = (network.image_size, network.image_size) if kind == 'stablehlo' else None
        check = compare(network, *load(made), shape)
        (made / 'README.md').write_text(card.text(network, kind, list(check.differences), check.sentence))
    return check


def _format(kind: str) -> tuple[Callable[[Exported, epath.Path], None], Callable[[epath.Path], tuple[str, Compute]]]:
    """The functions that write a format, and that load it anew."""
    if kind in _MODULES:
        with needs_tensorflow('--format=saved_model', 'choose another --format'):
            module: Any = importlib.import_module(f'simclr_jax.interop.{_MODULES[kind]}')
        return module.write, module.load
    from simclr_jax.interop import torch_out

    library = '' if kind == 'safetensors' else kind
    return (
        lambda network, directory: torch_out.write(network, directory, library),
        lambda directory: torch_out.load(directory, library),
    )


def compare(network: Exported, runner: str, compute: Compute, shape: tuple[int, int] | None = None) -> Check:
    """Compares a function with our network on fixed images.

    In float32, and again with our network in float64 where that shows a difference, which could be rounding alone.

    Args:
        network: Our network.
        runner: Name of what runs the function.
        compute: Function of images [N, H, W, 3], float32. It may lack outputs, but not the representation.
        shape: Height and width of the images, pixels. None: those that show every padding.

    Raises:
        CheckError: A difference is too large, or the features are constant or zero.
    """
    images = fixed_images(*(shape or SHAPES[network.encoder.stem]))
    ours, theirs = network.outputs(images), compute(images)
    check_outputs(network.directory, theirs)
    differences, rounding = _differences(theirs, ours), 0.0
    if not all_within(differences, ROUNDING):
        with jax.enable_x64(True):
            exact = network.outputs(images.astype(np.float64))
        differences, rounding = _differences(theirs, exact), max(_differences(ours, exact).values())
    limit = max(TOLERANCE, min(_ROUNDINGS * rounding, _MOST))
    if not all_within(differences, limit):
        found = ', '.join(f'{name} {value:.1e}' for name, value in differences.items())
        raise CheckError(f'{runner} computes something else from the file than our network: {found}. Nothing is kept')
    return Check(runner, differences, limit)


def _differences(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: largest_difference(values, expected[name]) for name, values in found.items()}
