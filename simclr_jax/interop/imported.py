"""A network of another program on its way in: its variables, checked against what that program computes."""

import dataclasses
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict

from simclr_jax.interop.architecture import Path
from simclr_jax.interop.exported import Exported
from simclr_jax.trained import ORIGIN
from simclr_jax.training import optim, workdir
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.state import TrainState

# Largest difference of an output from the other program's, as a share of its largest entry.
TOLERANCE = 1e-4
# Above this difference the outputs are compared in float64 too: some networks magnify the roundings of float32.
ROUNDING = 1e-5
# Height and width of the images of the check, by the stem. Odd and even maps are pooled differently.
SHAPES = {'cifar': (32, 33), 'imagenet': (64, 65)}


class CheckError(RuntimeError):
    """The converted network does not compute what the original does."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """A network of another program.

    Attributes:
        config: Configuration of a pretraining that makes the network.
        num_classes: Classes of the probe, 0 without one.
        variables: Our variables by their path, float32.
        step: Training step of the weights, 0 where it is not known.
        origin: Where the weights are from, for messages.
        compute: The original network: images [N, H, W, 3] in [0, 1] -> {'representation', 'projection', 'logits'}, or
            those of them that it has, all in the dtype of the images.
        computed_by: What `compute` runs in, for messages.
        notes: Lines for the user, for example about what was left out.
    """

    config: ConfigDict
    num_classes: int
    variables: dict[Path, np.ndarray]
    step: int
    origin: str
    compute: Callable[[np.ndarray], dict[str, np.ndarray]]
    computed_by: str = 'TensorFlow'
    notes: tuple[str, ...] = ()

    def check(self) -> dict[str, float]:
        """Compares the converted network with the original on fixed images.

        In float32, and again in float64 where that shows a difference, which could be rounding alone.

        Returns:
            For each output, the largest difference as a share of the original's largest entry.

        Raises:
            CheckError: A difference is larger than TOLERANCE, or the features are constant or zero.
        """
        found = self._differences(np.float32)
        if not all_within(found, ROUNDING):
            with jax.enable_x64(True):
                found = self._differences(np.float64)
        if not all_within(found, TOLERANCE):
            text = ', '.join(f'{name} {value:.1e}' for name, value in found.items())
            raise CheckError(f'{self.origin}: the converted network computes something else: {text}')
        return found

    def _differences(self, dtype: type) -> dict[str, float]:
        network = Exported(self.config, self.variables, self.step, self.origin, self.config.data.image_size)
        images = fixed_images(*SHAPES[network.encoder.stem]).astype(dtype)
        ours, theirs = network.outputs(images), self.compute(images)
        check_outputs(self.origin, theirs)
        return {name: largest_difference(ours[name], theirs[name]) for name in ours if name in theirs}

    def tree(self) -> dict:
        """The variables as the model takes them: {'params': ..., 'batch_stats': ...}."""
        return traverse_util.unflatten_dict(self.variables)

    def write(self, directory: str) -> None:
        """Makes a work directory with the network as its only checkpoint.

        Args:
            directory: Existing local directory, empty. It also gets origin.json.

        Raises:
            CheckpointError: The directory cannot be written.
        """
        workdir.claim(directory, self.config, allow_change=False)
        tree = self.tree()
        optimizer = self.config.optimizer
        tx = optim.make_optimizer(optimizer.name, lambda step: 0.0, weight_decay=optimizer.weight_decay)
        state = TrainState(
            step=jnp.asarray(self.step, jnp.int32),
            params=tree['params'],
            batch_stats=tree['batch_stats'],
            opt_state=tx.init(tree['params']),
        )
        checkpoints = Checkpoints(directory)
        checkpoints.save(state)
        checkpoints.close()
        origin = {'source': self.origin, 'computed_by': self.computed_by}
        (epath.Path(directory) / ORIGIN).write_text(json.dumps(origin) + '\n')


def check_outputs(origin: str, outputs: dict[str, np.ndarray]) -> None:
    """Raises CheckError if an output of two different images is not finite, or if their features are constant."""
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise CheckError(f'{origin}: {name} is not finite; use other weights')
    if not np.ptp(outputs['representation'], axis=0).any():
        raise CheckError(f'{origin}: two different images have the same features; use other weights')


def all_within(differences: dict[str, float], limit: float) -> bool:
    """Whether no difference is above a limit. NaN is."""
    return all(value <= limit for value in differences.values())


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of two arrays of one shape, as a share of the largest entry of `expected`."""
    if np.shape(found) != np.shape(expected):
        return np.inf
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


def origin_of(directory: str) -> str:
    """Where the weights of a work directory were converted from. '' for those of a training."""
    path = epath.Path(directory) / ORIGIN
    return str(json.loads(path.read_text())['source']) if path.exists() else ''


def fixed_images(height: int, width: int) -> np.ndarray:
    """Two images of coarse blocks under noise, float32 [2, height, width, 3] in [0, 1]."""
    random = np.random.default_rng(height)
    coarse, fine = random.uniform(size=(2, 4, 4, 3)), random.uniform(size=(2, height, width, 3))
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    return (0.7 * coarse[:, rows][:, :, columns] + 0.3 * fine).astype(np.float32)
