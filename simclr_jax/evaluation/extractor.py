"""The encoders that are measured, and their features: extracted once for each data set, kept in the work directory."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import distributed, sharding
from simclr_jax.augment.policy import CENTER_CROP_PROPORTION
from simclr_jax.build import make_task
from simclr_jax.data.spec import DataError, Examples
from simclr_jax.evaluation.features import Features, features_of, read_features, write_features
from simclr_jax.models.pooling import pool_to
from simclr_jax.models.resnet import PARTS
from simclr_jax.training import workdir
from simclr_jax.training.checkpoints import Checkpoints, checksum


@dataclasses.dataclass(frozen=True)
class FeatureExtractor:
    """Something that makes features of images.

    Attributes:
        name: 'simclr', 'untrained' or 'pixels'.
        variables: of the pretraining's model; None for pixels.
        config: of the pretraining.
        image_size: of the images it is given, pixels.
        crop_share: share of an image's shorter side that the central crop keeps.
        batch_size: images encoded at a time, a multiple of the devices.
        mesh: the devices.
        identity: of the parameters: another checkpoint has another one.
        cache: directory of its features; None: they are not kept.
    """

    name: str
    variables: dict[str, Any] | None
    config: ConfigDict
    image_size: int
    crop_share: float
    batch_size: int
    mesh: Mesh
    identity: str
    cache: epath.Path | None

    def features(self, examples: Examples, layer: str = 'h') -> Features:
        """Features of every readable image of a split.

        Args:
            examples: the split.
            layer: 'h', or 'feature1' (stem) to 'feature5' (last stage): the map, pooled to about 9,000 values.

        Raises:
            DataError: too many unreadable images.
        """
        path = None
        if self.cache is not None:
            name = ''.join(letter if letter.isalnum() or letter in '-.' else '_' for letter in examples.name)
            path = self.cache / f'{name}.{self.image_size}px.{self.crop_share:g}.{layer}.npz'
            kept = read_features(path, examples)
            if distributed.all_agree(kept is not None):
                return kept
        found = self.encode(examples, self.function(layer))
        if path is not None and distributed.is_first():
            write_features(path, found, examples)
        return found

    def encode(self, examples: Examples, function) -> Features:
        """What a jitted function of images [B, H, W, 3] makes of every readable image of a split."""
        found = features_of(
            function,
            examples,
            image_size=self.image_size,
            batch_size=self.batch_size,
            mesh=self.mesh,
            kept=self.crop_share,
        )
        unreadable = examples.size - len(found.values)
        if unreadable > self.config.data.max_unreadable * examples.size:
            raise DataError(
                f'{unreadable} of {examples.size} files of {examples.name} are no readable images, more than '
                f'data.max_unreadable={self.config.data.max_unreadable} of the pretraining allows; remove them'
            )
        return found

    def function(self, layer: str) -> Callable[[jax.Array], jax.Array]:
        """What makes features [B, F] of images [B, H, W, 3] in [0, 1]; for `layer` see `features`."""
        if self.name == 'pixels':
            return lambda images: images.reshape(images.shape[0], -1)
        task = make_task(self.config, 0, self.mesh)

        def pooled_map(variables, images):
            _, maps = task.model.apply(variables, images, method='encode', intermediates=True, unpooled_stem=True)
            values = pool_to(maps[PARTS[int(layer[-1]) - 1]])
            return values.reshape(len(images), -1)

        return functools.partial(jax.jit(task.encode if layer == 'h' else pooled_map), self.variables)


def open_extractor(
    directory: str,
    *,
    image_size: int = 0,
    crop_share: float = CENTER_CROP_PROPORTION,
    batch_size: int = 0,
    say: Callable[[str], None] = print,
) -> tuple[FeatureExtractor, int]:
    """The encoder of a work directory's newest checkpoint, and the checkpoint's step.

    Args:
        directory: the work directory; a `config.json` and a checkpoint's `model` are all that is needed.
        image_size: pixels; 0: that of the pretraining.
        crop_share: share of an image's shorter side that the central crop keeps.
        batch_size: images encoded at a time; 0: that of the pretraining.
        say: called with lines for the user.

    Raises:
        ConfigError, CheckpointError: there is no such run, or no checkpoint in it.
    """
    config = workdir.read_config(directory)
    mesh = sharding.make_mesh()
    checkpoints = Checkpoints(directory, say=say)
    variables, step = checkpoints.restore_model(mesh)
    checkpoints.close()
    identity = f'simclr-{step}-{checksum(variables):08x}'
    encoder = FeatureExtractor(
        name='simclr',
        variables=variables,
        config=config,
        image_size=image_size or config.data.image_size,
        crop_share=crop_share,
        batch_size=max((batch_size or config.batch_size) // mesh.size, 1) * mesh.size,
        mesh=mesh,
        identity=identity,
        cache=epath.Path(directory) / 'features' / identity,
    )
    return encoder, step


def make_baseline(encoder: FeatureExtractor, name: str) -> FeatureExtractor:
    """What an encoder is measured beside: 'pixels', or 'untrained', the parameters that its run started from."""
    if name == 'pixels':
        return dataclasses.replace(encoder, name=name, variables=None, identity=name, cache=None)
    # The first key of the run's own, as pretraining.pretrain splits it.
    key = jax.random.split(jax.random.key(encoder.config.seed))[0]
    variables = jax.jit(make_task(encoder.config, 0, encoder.mesh).init)(key)
    identity = f'{name}-{checksum(variables):08x}'
    return dataclasses.replace(
        encoder, name=name, variables=variables, identity=identity, cache=encoder.cache.parent / identity
    )
