"""Encoder, projection head and the linear probe that is trained beside them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.heads import ProjectionHead
from simclr_jax.models.layers import dense
from simclr_jax.models.resnet import ResNet
from simclr_jax.ops.precision import at_least_float32


class SimCLR(nn.Module):
    """The model of SimCLR (2002.05709, figure 2), with a supervised probe for watching it learn.

    Attributes:
        encoder: f, images to representations.
        head: g, representations to projections.
        num_classes: of the probe; 0: no probe.
        dtype: of the probe's computation; its logits are float32 at least.

    Example:
        >>> model = SimCLR(ResNet(18), ProjectionHead(layers=2), num_classes=10)
        >>> variables = model.init(jax.random.key(0), images, train=False)
        >>> outputs, moved = model.apply(variables, images, train=True, mutable=['batch_stats'])
        >>> h = model.apply(variables, images, method='encode')
    """

    encoder: ResNet
    head: ProjectionHead
    num_classes: int = 0
    dtype: Any = jnp.float32

    def setup(self):
        """Makes the probe; encoder and head are given."""
        if self.num_classes > 0:
            self.probe = dense(self.num_classes, dtype=self.dtype, use_bias=True)

    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, Any]:
        """Encodes, projects and classifies images.

        Args:
            x: [N, H, W, C] floats in [0, 1]; the views of an image are rows like any others.
            train: normalise with the batch's statistics and move the moving ones, or use these.

        Returns:
            'representation' h [N, F]; 'layers' [h, output of the head's layer 1, ..., z]; 'projection' z
            [N, D]; and with a probe 'logits' [N, num_classes], of which no gradient reaches the encoder.
        """
        h = self.encoder(x, train=train)
        layers = self.head(h, train=train)
        outputs = {'representation': h, 'layers': layers, 'projection': layers[-1]}
        if self.num_classes > 0:
            outputs['logits'] = at_least_float32(self.probe(jax.lax.stop_gradient(h)))
        return outputs

    def encode(self, x: jax.Array, *, train: bool = False, **outputs: bool) -> Any:
        """The encoder alone, for evaluation; needs only the encoder's variables. See `ResNet.__call__`."""
        return self.encoder(x, train=train, **outputs)
