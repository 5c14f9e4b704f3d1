"""Semantic segmentation on top of a pretrained encoder: a fully convolutional head on its last feature map."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.encoders import Encoder
from simclr_jax.models.layers import Conv, conv_bn
from simclr_jax.ops.precision import at_least_float32


class FullyConvolutionalHead(nn.Module):
    """Classifies each place of a feature map by its surroundings.

    Two 3x3 convolutions, a third one on their result beside the map itself, and a 1x1 convolution to the classes. It is
    the head `FCNHead` of mmsegmentation with its published settings, without dropout.

    Attributes:
        num_classes: Number of classes K.
        channels: Channels of the 3x3 convolutions.
        dtype: Precision of the computation. The logits are at least float32.

    Source: Long et al., Fully Convolutional Networks for Semantic Segmentation (arXiv 1411.4038).
    """

    num_classes: int
    channels: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Classifies the places of maps: [N, H, W, C] -> logits [N, H, W, K].

        Args:
            x: Feature maps [N, H, W, C].
            train: Whether to normalise with the statistics of the batch and update the moving ones.
        """
        y = conv_bn(x, self.channels, 3, names=('conv1', 'bn1'), train=train, dtype=self.dtype)
        y = conv_bn(y, self.channels, 3, names=('conv2', 'bn2'), train=train, dtype=self.dtype)
        y = jnp.concatenate([x.astype(y.dtype), y], axis=-1)
        y = conv_bn(y, self.channels, 3, names=('conv3', 'bn3'), train=train, dtype=self.dtype)
        return at_least_float32(Conv(self.num_classes, 1, use_bias=True, name='classify', dtype=self.dtype)(y))


class Segmenter(nn.Module):
    """Encoder and fully convolutional head.

    Attributes:
        encoder: Encoder f. Its `output_stride` decides how dense the logits are.
        num_classes: Number of classes K.
        channels: Channels of the head.
        dtype: Precision of the head's computation. Its logits are at least float32.
    """

    encoder: Encoder
    num_classes: int
    channels: int = 512
    dtype: Any = jnp.float32

    def setup(self):
        """Makes the head. The encoder is given."""
        self.decoder = FullyConvolutionalHead(self.num_classes, self.channels, self.dtype)

    def __call__(self, x: jax.Array, *, train: bool, frozen: int = 0) -> jax.Array:
        """Classifies the places of the encoder's last map. `upsampled` brings the logits to the size of the images.

        Args:
            x: Images [N, H, W, C], floats in [0, 1].
            train: Whether to normalise with the statistics of the batch and update the moving ones. Otherwise the
                moving ones are used.
            frozen: Number of frozen parts of the encoder, see `encoders.Encoder`.

        Returns:
            Logits [N, ceil(H / stride), ceil(W / stride), K].
        """
        _, maps = self.encoder(x, train=train, frozen=frozen, maps=True)
        return self.decoder(maps[self.encoder.parts[-1]], train=train)


def upsampled(logits: jax.Array, size: int) -> jax.Array:
    """Enlarges logits bilinearly: [N, H, W, K] -> [N, size, size, K].

    Pixels are squares whose centres carry the values, which is called align_corners=False elsewhere. At the border the
    nearest value counts.

    Args:
        logits: Logits [N, H, W, K].
        size: Height and width of the result, pixels.
    """
    return jax.image.resize(logits, (logits.shape[0], size, size, logits.shape[-1]), 'bilinear')
