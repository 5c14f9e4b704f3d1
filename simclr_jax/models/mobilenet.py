"""The encoder MobileNetV3 (arXiv 1905.02244), large and small.

Parameters are named after their place: stage2/block1/depthwise/kernel.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.batch_norm import BATCH_NORM_MOMENTUM
from simclr_jax.models.encoders import check_common
from simclr_jax.models.inverted import Block, divisible, encode, names_of, strides_of

# Stages of each variant (tables 1 and 2). A block is: kernel size, expanded channels, channels, gate, activation,
# stride.
RELU, SWISH = 'relu', 'hard_swish'
STAGES = {
    'large': (
        ((3, 16, 16, False, RELU, 1),),
        ((3, 64, 24, False, RELU, 2), (3, 72, 24, False, RELU, 1)),
        ((5, 72, 40, True, RELU, 2), (5, 120, 40, True, RELU, 1), (5, 120, 40, True, RELU, 1)),
        (
            (3, 240, 80, False, SWISH, 2),
            (3, 200, 80, False, SWISH, 1),
            (3, 184, 80, False, SWISH, 1),
            (3, 184, 80, False, SWISH, 1),
        ),
        ((3, 480, 112, True, SWISH, 1), (3, 672, 112, True, SWISH, 1)),
        ((5, 672, 160, True, SWISH, 2), (5, 960, 160, True, SWISH, 1), (5, 960, 160, True, SWISH, 1)),
    ),
    'small': (
        ((3, 16, 16, True, RELU, 2),),
        ((3, 72, 24, False, RELU, 2), (3, 88, 24, False, RELU, 1)),
        ((5, 96, 40, True, SWISH, 2), (5, 240, 40, True, SWISH, 1), (5, 240, 40, True, SWISH, 1)),
        ((5, 120, 48, True, SWISH, 1), (5, 144, 48, True, SWISH, 1)),
        ((5, 288, 96, True, SWISH, 2), (5, 576, 96, True, SWISH, 1), (5, 576, 96, True, SWISH, 1)),
    ),
}


class MobileNet(nn.Module):
    """The encoder f: images to representations.

    The representation is the vector before the published classifier: the means of the last convolution's channels
    behind a dense layer and hard-swish. It is what DisCo (arXiv 2104.09124) puts its head on.

    Attributes:
        variant: 'large' or 'small'.
        width: Multiplier of each number of channels, above 0. Numbers of channels are multiples of 8.
        stem: 'cifar' for images of up to 32 pixels, otherwise 'imagenet' as published. With 'cifar' the stem and the
            first stage that would reduce the resolution have stride 1.
        stochastic_depth: Probability that training leaves out a block for an image (arXiv 1603.09382). It grows with
            the index of the block up to this number. Published: 0.
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

    # Width of the dense layer.
    WIDTHS: ClassVar = {'large': 1280, 'small': 1024}

    variant: str = 'large'
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
        if self.variant not in self.WIDTHS:
            raise ValueError(f"variant='{self.variant}' is unknown; choose one of {tuple(self.WIDTHS)}")
        check_common(self)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts: 'stem', 'stage1', ..., and 'top', the last convolution and the dense layer."""
        return names_of(STAGES[self.variant])

    @property
    def feature_width(self) -> int:
        """Number F of values of a representation."""
        return self.channels(self.WIDTHS[self.variant])

    @property
    def title(self) -> str:
        """Name and size for people."""
        return f'MobileNetV3-{self.variant} x{self.width:g}'

    @property
    def is_random(self) -> bool:
        """Whether training draws random numbers."""
        return self.stochastic_depth > 0 or self.dropout > 0

    @property
    def batch_norm_epsilon(self) -> float:
        """Constant in the batch norms, torchvision's. That of the other encoders is 1e-5."""
        return 1e-3

    @property
    def stem_stride(self) -> int:
        """Pixels of the image between neighbours on the stem's map."""
        return 1 if self.stem == 'cifar' else 2

    @property
    def top_channels(self) -> int:
        """Channels of the last convolution."""
        return 6 * self.blocks()[-1][-1].features

    @property
    def activation(self) -> str:
        """Activation of stem and top, one of `inverted.ACTIVATIONS`."""
        return SWISH

    @property
    def stem_channels(self) -> int:
        """Channels of the stem."""
        return self.channels(16)

    def channels(self, number: float) -> int:
        """A published number of channels at this width."""
        return divisible(number * self.width)

    def blocks(self) -> tuple[tuple[Block, ...], ...]:
        """The blocks of each stage."""
        return tuple(tuple(self._block(*described) for described in blocks) for blocks in STAGES[self.variant])

    def _block(self, size: int, expanded: int, features: int, is_gated: bool, activation: str, strides: int) -> Block:
        expanded = self.channels(expanded)
        # The gate's hidden layer is a quarter of the expansion.
        hidden = divisible(expanded // 4) if is_gated else 0
        return Block(size, expanded, self.channels(features), strides, hidden, activation, RELU, 'hard_sigmoid')

    def strides(self) -> list[int]:
        """The stride of each stage, without dilation."""
        return strides_of(self.blocks(), self.stem_stride)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, frozen: int = 0, maps: bool = False) -> Any:
        """Encodes images, see `encoders.Encoder`."""
        return encode(self, x, hidden=self.feature_width, train=train, frozen=frozen, maps=maps)
