"""Encoder and projection head, with the linear probe that is trained beside them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.encoders import Encoder
from simclr_jax.models.heads import ProjectionHead
from simclr_jax.models.layers import dense
from simclr_jax.ops.precision import at_least_float32


class SimCLR(nn.Module):
    """Model of SimCLR (arXiv 2002.05709, figure 2), with a supervised probe that shows how well it learns.

    Attributes:
        encoder: Encoder f, images to representations.
        head: Projection head g, representations to projections.
        num_classes: Classes of the probe. 0: no probe.
        dtype: Precision of the probe's computation. Its logits are at least float32.

    Example:
        >>> from simclr_jax.models.resnet import ResNet
        >>> model = SimCLR(ResNet(18), ProjectionHead(layers=2), num_classes=10)
        >>> images = jnp.zeros((4, 32, 32, 3))
        >>> variables = jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))
        >>> h = jax.eval_shape(lambda variables: model.apply(variables, images, method='encode'), variables)
        >>> h.shape
        (4, 512)
    """

    encoder: Encoder
    head: ProjectionHead
    num_classes: int = 0
    dtype: Any = jnp.float32

    def setup(self):
        """Makes the probe. Encoder and head are given."""
        if self.num_classes > 0:
            self.probe = dense(self.num_classes, dtype=self.dtype, use_bias=True)

    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, Any]:
        """Encodes, projects and classifies images.

        Args:
            x: Images [N, H, W, C], floats in [0, 1]. Each view of an image is a row.
            train: Whether to normalise with the statistics of the batch and update the moving ones. Otherwise the
                moving ones are used.

        Returns:
            A dictionary with these entries:

            - 'representation': Representations h [N, F].
            - 'layers': The list [h, output of the head's layer 1, ..., z].
            - 'projection': Projections z [N, D].
            - 'logits': Logits [N, num_classes] of the probe, if there is one. They pass no gradient to the encoder.
        """
        h = self.encoder(x, train=train)
        layers = self.head(h, train=train)
        outputs = {'representation': h, 'layers': layers, 'projection': layers[-1]}
        if self.num_classes > 0:
            outputs['logits'] = at_least_float32(self.probe(jax.lax.stop_gradient(h)))
        return outputs

    def classify(self, x: jax.Array) -> jax.Array:
        """Logits [N, num_classes] of the probe for images [N, H, W, C] in [0, 1], in inference mode."""
        return at_least_float32(self.probe(self.encoder(x, train=False)))

    def encode(self, x: jax.Array, *, train: bool = False, **outputs: bool) -> Any:
        """Encodes images, for evaluation, and needs only the encoder's variables.

        Args:
            x: Images [N, H, W, C], floats in [0, 1].
            train: See `__call__`.
            outputs: Further arguments of `Encoder.__call__`.

        Returns:
            The result of `Encoder.__call__`.
        """
        return self.encoder(x, train=train, **outputs)
