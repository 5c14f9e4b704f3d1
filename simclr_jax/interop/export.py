"""The story of `simclr export`: write a network, load the file anew, compare, and only then put it in its place."""

import dataclasses
import importlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from simclr_jax.config import ConfigError
from simclr_jax.config.paths import directory_path
from simclr_jax.config.storage import check_reachable
from simclr_jax.data.spec import needs_tensorflow
from simclr_jax.interop import card
from simclr_jax.interop.exported import Exported, open_exported
from simclr_jax.interop.imported import TOLERANCE, CheckError, check_features, fixed_images, largest_difference

FORMATS = ('safetensors', 'torchvision', 'timm', 'saved_model', 'stablehlo', 'onnx')
_MODULES = {'saved_model': 'saved_model', 'stablehlo': 'stablehlo', 'onnx': 'onnx_out'}
# A file may be further from our network in float64 than TOLERANCE, if our own float32 is nearly as far.
_ROUNDINGS = 4
# Side of the images of the check for networks of any image size. Odd and even maps are pooled differently.
_SIDES = (64, 65)

Compute = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Check:
    """Comparison of an exported file with our network.

    Attributes:
        runner: What has run the file.
        differences: For each output, the largest difference as a share of the largest entry.
        rounding: The same between our network in float32 and in float64, its largest value.
    """

    runner: str
    differences: dict[str, float]
    rounding: float

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        found = ', '.join(f'{name} {value:.1e}' for name, value in self.differences.items())
        return (
            f'The file was loaded anew and computed with {self.runner}. Largest difference from the network in '
            f'float64, as a share of the largest entry: {found}. The network in float32 differs by {self.rounding:.1e}.'
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
    place = epath.Path(directory_path(out))
    check_reachable(place)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError([f'--out={out}: it exists; choose another directory'])
    network = open_exported(directory, say)
    with tempfile.TemporaryDirectory() as name:
        temporary = epath.Path(name) / 'export'
        temporary.mkdir()
        write, load = _format(kind)
        write(network, temporary)
        check = compare(network, *load(temporary), sides=(network.image_size,) if kind == 'stablehlo' else None)
        (temporary / 'README.md').write_text(card.text(network, kind, list(check.differences), check.sentence))
        _put(temporary, place)
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


def compare(network: Exported, runner: str, compute: Compute, sides: tuple[int, ...] | None = None) -> Check:
    """Compares a function with our network on fixed images.

    Args:
        network: Our network.
        runner: Name of what runs the function.
        compute: Function of images [N, H, W, 3]. It may lack outputs, but not the representation.
        sides: Sides of the images, pixels. None: those that show every padding.

    Raises:
        CheckError: A difference is too large, or the features are constant or zero.
    """
    differences: dict[str, float] = {}
    rounding = 0.0
    for side in sides or ((32,) if network.image_size <= 32 else _SIDES):
        images = fixed_images(side)
        theirs = compute(images)
        with jax.enable_x64(True):
            exact = _ours(network, images.astype(np.float64))
        ours = _ours(network, images)
        check_features(network.directory, theirs['representation'])
        for name, values in theirs.items():
            differences[name] = max(differences.get(name, 0.0), largest_difference(values, exact[name]))
            rounding = max(rounding, largest_difference(ours[name], exact[name]))
    if not max(differences.values()) <= max(TOLERANCE, _ROUNDINGS * rounding):
        found = ', '.join(f'{name} {value:.1e}' for name, value in differences.items())
        raise CheckError(f'{runner} computes something else from the file than our network: {found}. Nothing is kept')
    return Check(runner, differences, rounding)


def _ours(network: Exported, images: np.ndarray) -> dict[str, np.ndarray]:
    variables = {path: array.astype(images.dtype) for path, array in network.variables.items()}
    found = jax.jit(network.apply)(traverse_util.unflatten_dict(variables), images)
    return jax.device_get(found)


def _put(source: epath.Path, place: epath.Path) -> None:
    """Copies a directory to its place. A local one appears there as a whole."""
    if '://' in str(place):
        for path in sorted(source.glob('**/*')):
            if path.is_file():
                target = place / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f'{place.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    if place.exists():
        place.rmdir()
    partial.rename(place)
