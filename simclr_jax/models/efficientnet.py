"""The encoder EfficientNet (arXiv 1905.11946), B0 and B1.

Parameters are named after their place: stage2/block1/depthwise/kernel.
"""

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.batch_norm import BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM
from simclr_jax.models.encoders import check_common
from simclr_jax.models.inverted import Block, divisible, encode, names_of, strides_of

# Stages of B0 (table 1): expansion, kernel size, stride, channels, blocks.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class EfficientNet(nn.Module):
    """The encoder f: images to representations, the means of the last convolution's 1280 * width channels.

    Attributes:
        variant: 'b0' or 'b1'. B1 has more blocks. Its published image size is 240 pixels, that of B0 224.
        width: Multiplier of each number of channels, above 0. Numbers of channels are multiples of 8.
        stem: 'cifar' for images of up to 32 pixels, otherwise 'imagenet' as published. With 'cifar' the stem and the
            first stage that would reduce the resolution have stride 1.
        stochastic_depth: Probability that training leaves out a block for an image (arXiv 1603.09382). It grows with
            the index of the block up to this number. Published: 0.2.
        dropout: Share of the representation's values that training makes 0. Published: 0.2.
        output_stride: Most pixels of the image between neighbours on a feature map, see `encoders.dilated`.
        dtype: Precision of the computation, float32 or bfloat16. Parameters, statistics and the representation are
            float32 in both cases.
        batch_norm_momentum: Share of the old moving statistics that each training step keeps.
        remat: Stages, counted from 1, whose blocks are recomputed in the backward pass.
        mean: Mean of each channel that is subtracted from the images. Empty: none, as in SimCLR.
        std: Number that each channel is divided by after that. Empty like `mean`.

    Raises:
        ValueError: An attribute is outside of these values, or the input is not floating-point [N, H, W, C].
    """

    # Multiplier of the number of blocks.
    DEPTHS: ClassVar = {'b0': 1.0, 'b1': 1.1}

    variant: str = 'b0'
    width: float = 1.0
    stem: str = 'imagenet'
    stochastic_depth: float = 0.0
    dropout: float = 0.0
    output_stride: int = 32
    dtype: Any = jnp.float32
    batch_norm_momentum: float = BATCH_NORM_MOMENTUM
    remat: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if self.variant not in self.DEPTHS:
            raise ValueError(f"variant='{self.variant}' is unknown; choose one of {tuple(self.DEPTHS)}")
        check_common(self)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts: 'stem', 'stage1' to 'stage7', and 'top', the last convolution."""
        return names_of(STAGES)

    @property
    def feature_width(self) -> int:
        """Number F of values of a representation."""
        return 4 * self.channels(STAGES[-1][3])

    @property
    def top_channels(self) -> int:
        """Channels of the last convolution."""
        return self.feature_width

    @property
    def title(self) -> str:
        """Name and size for people."""
        return f'EfficientNet-{self.variant.upper()} x{self.width:g}'

    @property
    def is_random(self) -> bool:
        """Whether training draws random numbers."""
        return self.stochastic_depth > 0 or self.dropout > 0

    @property
    def batch_norm_epsilon(self) -> float:
        """Constant in the batch norms."""
        return BATCH_NORM_EPSILON

    @property
    def stem_stride(self) -> int:
        """Pixels of the image between neighbours on the stem's map."""
        return 1 if self.stem == 'cifar' else 2

    @property
    def activation(self) -> str:
        """Activation of stem and top, one of `inverted.ACTIVATIONS`."""
        return 'swish'

    @property
    def stem_channels(self) -> int:
        """Channels of the stem."""
        return self.channels(32)

    def channels(self, number: float) -> int:
        """A number of channels of B0 at this width."""
        return divisible(number * self.width)

    def blocks(self) -> tuple[tuple[Block, ...], ...]:
        """The blocks of each stage."""
        stages, before = [], self.stem_channels
        for expansion, size, strides, features, count in STAGES:
            blocks = []
            for index in range(math.ceil(count * self.DEPTHS[self.variant])):
                # The gate's hidden layer is a quarter of the block's input, not of its expansion.
                hidden = max(1, before // 4)
                stride, after = strides if index == 0 else 1, self.channels(features)
                expanded = divisible(before * expansion)
                blocks.append(Block(size, expanded, after, stride, hidden, 'swish', 'swish', 'sigmoid'))
                before = after
            stages.append(tuple(blocks))
        return tuple(stages)

    def strides(self) -> list[int]:
        """The stride of each stage, without dilation."""
        return strides_of(self.blocks(), self.stem_stride)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, frozen: int = 0, maps: bool = False) -> Any:
        """Encodes images, see `encoders.Encoder`."""
        return encode(self, x, hidden=0, train=train, frozen=frozen, maps=maps)
