"""The encoders that are measured. Their features are computed once per data set and kept in the work directory."""

import contextlib
import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from simclr_jax import distributed, sharding
from simclr_jax.augment.policy import CENTER_CROP_PROPORTION
from simclr_jax.config.paths import directory_path
from simclr_jax.data.reader import check_unreadable
from simclr_jax.data.spec import DataError, Examples
from simclr_jax.evaluation.features import Features, features_of, keep_features, read_features
from simclr_jax.models.pooling import pool_to
from simclr_jax.networks import make_model
from simclr_jax.training import workdir
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.checksum import checksum

# Letters of a split's name in the name of its features' file.
LONGEST_NAME = 40
# Shows how encoding goes on: a function of a split's name and its number of images. The function that its context gives
# is called with the number of newly encoded images.
Progress = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]


def no_progress(name: str, total: int) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    """Shows nothing, see `Progress`."""
    return contextlib.nullcontext(lambda count: None)


@dataclasses.dataclass(frozen=True)
class FeatureExtractor:
    """Computes features of images, with an encoder or as raw pixels.

    Attributes:
        name: 'simclr', 'untrained' or 'pixels'.
        variables: Variables of the pretraining's model. None for raw pixels.
        config: Configuration of the pretraining.
        image_size: Side of the images that are encoded, pixels.
        crop_share: Share of an image's shorter side that the central crop keeps, in (0, 1].
        batch_size: Images per batch, a multiple of the number of devices.
        mesh: Devices that encode.
        identity: Text that identifies the parameters. It differs between checkpoints.
        cache: Directory of the features. None means that they are not kept.
        say: Function that receives lines for the user.
        progress: Shows how encoding goes on.
        programs: Jitted functions of variables and images, by layer. All splits share them.
        in_memory: Features that could not be written, by the path of their file. Each label budget needs them again.
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
    say: Callable[[str], None] = print
    progress: Progress = no_progress
    programs: dict[str, Callable[[Any, jax.Array], jax.Array]] = dataclasses.field(default_factory=dict)
    in_memory: dict[str, Features] = dataclasses.field(default_factory=dict)

    def features(self, examples: Examples, layer: str = 'h') -> Features:
        """Features of every readable image of a split, from the cache if they are there.

        Args:
            examples: Split to encode.
            layer: 'h' for the representation, or 'featureN' for the feature map of the encoder's N-th part, pooled to
                about 9,000 values. 'feature1' is the stem's.

        Raises:
            DataError: Too many images are unreadable.
        """
        path = None
        if self.cache is not None:
            path = self.cache / f'{_file_name(examples)}.{self.image_size}px.{self.crop_share!r}.{layer}.npz'
            kept = self.in_memory.get(str(path)) or read_features(path, examples, self.say)
            if distributed.all_agree(kept is not None):
                assert kept is not None
                return kept
        found = self.encode(examples, self.function(layer))
        if path is not None:
            is_written = not distributed.is_first() or keep_features(path, found, examples, self.say)
            if not distributed.all_agree(is_written):
                self.in_memory[str(path)] = found
        return found

    def encode(self, examples: Examples, function) -> Features:
        """Applies a function to every readable image of a split.

        Args:
            examples: Split to encode.
            function: Jitted function of images [B, H, W, 3] in [0, 1], whose rows are divided among the devices.

        Returns:
            Its results, in place of features.

        Raises:
            DataError: Too many images are unreadable.
        """
        start = time.perf_counter()
        with self.progress(examples.name, examples.size) as advance:
            found = features_of(
                function,
                examples,
                image_size=self.image_size,
                batch_size=self.batch_size,
                mesh=self.mesh,
                kept=self.crop_share,
                progress=advance,
            )
        seconds = time.perf_counter() - start
        self.say(f'{examples.name}: {len(found.index):,} images in {seconds:.0f} s.')
        missing = np.setdiff1d(np.arange(examples.size), found.index)
        unreadable = [examples.id_of(int(index)) for index in missing]
        check_unreadable(examples, unreadable, self.config.data.max_unreadable)
        return found

    def function(self, layer: str) -> Callable[[jax.Array], jax.Array]:
        """The function from images [B, H, W, 3] in [0, 1] to features [B, F]. `features` explains `layer`."""
        if self.name == 'pixels':
            return lambda images: images.reshape(images.shape[0], -1)
        if layer not in self.programs:
            self.programs[layer] = self._program(layer)
        return functools.partial(self.programs[layer], self.variables)

    def _program(self, layer: str) -> Callable[[Any, jax.Array], jax.Array]:
        model = make_model(self.config, 0)

        def representation(variables, images):
            h: Any = model.apply(variables, images, method='encode')
            return h.astype(jnp.float32)

        if layer == 'h':
            return jax.jit(representation)
        parts, number = model.encoder.parts, int(layer.removeprefix('feature'))
        if number > len(parts):
            raise DataError(f'{layer}: this encoder has only feature1 to feature{len(parts)}; choose one of them')

        def pooled_map(variables, images):
            encoded: Any = model.apply(variables, images, method='encode', maps=True)
            return pool_to(encoded[1][parts[number - 1]]).reshape(len(images), -1)

        return jax.jit(pooled_map)


def _file_name(examples: Examples) -> str:
    """A name for a file about a split: readable, short enough for every file system, and another one for each split."""
    plain = ''.join(letter if letter.isalnum() or letter in '-.' else '_' for letter in examples.name)
    # A letter has up to four bytes, and names may have 255.
    digest = hashlib.blake2b(examples.name.encode(errors='surrogatepass'), digest_size=8).hexdigest()
    return f'{plain[-LONGEST_NAME:]}-{digest}'


def open_extractor(
    directory: str,
    *,
    image_size: int = 0,
    crop_share: float = CENTER_CROP_PROPORTION,
    batch_size: int = 0,
    say: Callable[[str], None] = print,
    progress: Progress = no_progress,
) -> tuple[FeatureExtractor, int]:
    """Opens the encoder of a work directory's newest checkpoint.

    Args:
        directory: Work directory, local or gs://. Its config.json and the `model` of its newest checkpoint are needed.
        image_size: Side of the images that are encoded, pixels. 0 means that of the pretraining.
        crop_share: Share of an image's shorter side that the central crop keeps, in (0, 1].
        batch_size: Images per batch, rounded down to a multiple of the devices. 0 means that of the pretraining.
        say: Function that receives lines for the user.
        progress: Shows how encoding goes on.

    Returns:
        The encoder, and the step of the checkpoint.

    Raises:
        ConfigError: The directory holds no run.
        CheckpointError: The run has no undamaged checkpoint.
    """
    directory = directory_path(directory)
    config = workdir.read_config(directory)
    mesh = sharding.make_mesh()
    checkpoints = Checkpoints(directory, say=say, reads_only=True)
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
        say=say,
        progress=progress,
    )
    return encoder, step


def make_baseline(encoder: FeatureExtractor, name: str) -> FeatureExtractor:
    """Makes a baseline to compare an encoder with.

    Args:
        encoder: Encoder to compare.
        name: 'pixels' for raw pixels, or 'untrained' for the parameters from which its run started.
    """
    if name == 'pixels':
        return dataclasses.replace(encoder, name=name, variables=None, identity=name, cache=None)
    # This is the key with which pretraining.pretrain made the first parameters.
    key = jax.random.split(jax.random.key(encoder.config.seed))[0]
    place = sharding.replicated(encoder.mesh)
    size = encoder.config.data.image_size
    init = functools.partial(make_model(encoder.config, 0).init, train=True)
    variables = jax.jit(init, out_shardings=place)(key, jnp.zeros((2, size, size, 3), jnp.float32))
    identity = f'{name}-{checksum(variables):08x}'
    cache = None if encoder.cache is None else encoder.cache.parent / identity
    return dataclasses.replace(encoder, name=name, variables=variables, identity=identity, cache=cache)
