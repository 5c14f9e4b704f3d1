"""A trained network on its way out: what a work directory holds, and what it computes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict

from simclr_jax import sharding
from simclr_jax.config import ConfigError
from simclr_jax.config.paths import directory_path
from simclr_jax.interop.architecture import Path
from simclr_jax.models.classifier import Classifier
from simclr_jax.models.encoders import Encoder
from simclr_jax.models.heads import ProjectionHead
from simclr_jax.networks import make_model
from simclr_jax.trained import read_trained
from simclr_jax.training.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class Exported:
    """A trained network.

    Attributes:
        config: Configuration of the pretraining.
        variables: Our variables by their path, float32.
        step: Training step of the weights.
        directory: Work directory, or directory of a training in it.
        image_size: Side of the images that it was trained on, pixels.
        head_layer: Index in [h, output of the head's layer 1, ...] of the features that the classifier takes.
        protocol: Protocol that trained the classifier. '' for a run.
        learnt: Encoder, data set and label budget of the protocol, such as 'simclr cifar10 10%'. '' for a run.
        images: Images that the classifier learnt from. '' for a run.
    """

    config: ConfigDict
    variables: dict[Path, np.ndarray]
    step: int
    directory: str
    image_size: int
    head_layer: int = 0
    protocol: str = ''
    learnt: str = ''
    images: str = ''

    @property
    def run(self) -> str:
        """Work directory of the run."""
        return str(epath.Path(self.directory).parent.parent) if self.protocol else self.directory

    def without_head(self) -> 'Exported':
        """The same network without its projection head."""
        kept = {path: values for path, values in self.variables.items() if path[1] != 'head'}
        return dataclasses.replace(self, variables=kept)

    @property
    def encoder(self) -> Encoder:
        """The encoder in float32."""
        return make_model(self.config, 0).encoder.clone(dtype=jnp.float32, remat=())

    @property
    def num_classes(self) -> int:
        """Classes of the classifier or of the pretraining's probe, 0 without one."""
        bias = self.variables.get(('params', 'probe', 'bias'))
        return 0 if bias is None else len(bias)

    @property
    def head_layers(self) -> int:
        """Layers of the projection head that there are."""
        return len({path[2] for path in self.variables if path[1] == 'head' and path[2].startswith('dense')})

    @property
    def has_whole_head(self) -> bool:
        """Whether the last layer of the projection head is there, whose norm has no offset."""
        last = f'bn{self.head_layers}'
        return self.head_layers > 0 and ('params', 'head', last, 'bias') not in self.variables

    def apply(self, variables: dict[str, Any], images: jax.Array) -> dict[str, jax.Array]:
        """Computes the network.

        Args:
            variables: Our variables as a tree, float32 or float64.
            images: Images [N, H, W, 3] in [0, 1], of the same dtype.

        Returns:
            'representation' [N, F], 'projection' [N, D] if the whole head is there, and 'logits' [N, K] if a classifier
            is there.
        """
        head: ProjectionHead = make_model(self.config, 0).head.clone(dtype=images.dtype)
        classifier = Classifier(
            encoder=self.encoder.clone(dtype=images.dtype),
            head=head,
            num_classes=max(self.num_classes, 1),
            head_layer=self.head_layer,
            dtype=images.dtype,
        )

        def compute(module: Classifier, images: jax.Array) -> dict[str, jax.Array]:
            h = module.encoder(images, train=False)
            layers = module.head(h, train=False, until=self.head_layers)
            outputs = {'representation': h}
            if self.has_whole_head:
                outputs['projection'] = layers[-1]
            if self.num_classes:
                outputs['logits'] = module.probe(layers[self.head_layer])
            return outputs

        found: Any = classifier.apply(variables, images, method=compute)
        return found

    def outputs(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """What `apply` gives for images [N, H, W, 3], in their precision, float32 or float64."""
        variables = {path: array.astype(images.dtype) for path, array in self.variables.items()}
        return jax.device_get(jax.jit(self.apply)(traverse_util.unflatten_dict(variables), images))


def open_exported(directory: str, say: Callable[[str], None] = print) -> Exported:
    """Reads the newest checkpoint of a run, or of a training that an evaluation has kept.

    Args:
        directory: Work directory, or its sub-directory trained/NAME of a fine-tuned or linear classifier.
        say: Function that receives lines for the user.

    Raises:
        ConfigError, CheckpointError: The directory holds neither, or its training has no single classifier.
    """
    directory = directory_path(directory)
    trained = read_trained(directory)
    checkpoints = Checkpoints(directory, say=say, reads_only=True)
    variables, step = checkpoints.restore_model(sharding.make_mesh(jax.local_devices()[:1]))
    checkpoints.close()
    flat: Any = traverse_util.flatten_dict(jax.device_get(variables))
    network = Exported(variables=flat, step=step, **vars(trained))
    if network.head_layer > network.head_layers:
        raise ConfigError(
            [f'{directory}/settings.json is damaged: the checkpoint has no layer {network.head_layer} of the head']
        )
    if trained.config.head.batch_norm or not network.head_layers:
        return network
    if network.head_layer:
        raise ConfigError(
            [
                f'{directory}: its classifier takes layer {network.head_layer} of a head without batch norms, which no '
                'format holds; fine-tune with finetune.head_layer=0'
            ]
        )
    say('The projection head has no batch norms and is left out.')
    return network.without_head()
