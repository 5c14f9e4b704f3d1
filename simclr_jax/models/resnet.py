"""The encoder: ResNet (arXiv 1512.03385), optionally with selective kernels or squeeze-and-excitation.

Depths and widths are those of SimCLR (arXiv 2002.05709, appendix B.6 and B.9) and SimCLRv2 (arXiv 2006.10029,
section 3 and appendix C.1). Parameters are named after their place: stage2/block1/conv1/kernel.
"""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.batch_norm import BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM, BatchNorm
from simclr_jax.models.blocks import Stage
from simclr_jax.models.encoders import check_common, check_frozen, dilated, prepared
from simclr_jax.models.layers import conv_bn
from simclr_jax.ops.precision import at_least_float32

# Shortcuts of the first block of stage 1.
SHORTCUTS = ('projection', 'identity')
# Paddings of the stem's max pooling, for the rows and the columns: before and after. TensorFlow's SAME depends on the
# parity of the map.
POOLS = {'same': 'SAME', 'symmetric': ((1, 1), (1, 1))}


def scaled_width(channels: int, width: float) -> int:
    """Scales a number of channels by a width multiplier: floor(channels * width), at least one."""
    return max(1, int(channels * width))


class Stem(nn.Module):
    """The layers before the first stage.

    Attributes:
        kind: One of these:

            - 'cifar': A 3x3 convolution, for images of up to 32 pixels.
            - 'imagenet': A 7x7 convolution of stride 2 and max pooling of stride 2.
            - 'resnet_d': Like 'imagenet', with three 3x3 convolutions for the 7x7 one (arXiv 1812.01187, figure 2b).
        width: Multiplier of the number of channels.
        dtype: Precision of the computation.
        norm: Makes the batch norms.
        padding: Padding of the max pooling, one of POOLS.
    """

    kind: str
    width: float
    dtype: Any
    norm: Any = BatchNorm
    padding: str = 'same'

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, pool: bool = True) -> jax.Array:
        """Applies the stem to images.

        Args:
            x: Images [N, H, W, C].
            train: See `ResNet.__call__`.
            pool: Whether to end with the max pooling of 'imagenet' and 'resnet_d'.

        Returns:
            A feature map [N, H, W, 64 * width] for 'cifar'. For the others [N, ceil(H / 4), ceil(W / 4), 64 * width],
            or [N, ceil(H / 2), ceil(W / 2), 64 * width] without `pool`.
        """
        layer = functools.partial(conv_bn, train=train, dtype=self.dtype, norm=self.norm)
        max_pool = self._max_pool if pool else None
        narrow, wide = scaled_width(32, self.width), scaled_width(64, self.width)
        if self.kind == 'cifar':
            return layer(x, wide, 3, names=('conv', 'bn'))
        if self.kind == 'imagenet':
            return layer(x, wide, 7, 2, names=('conv', 'bn'), max_pool=max_pool)
        x = layer(x, narrow, 3, 2, names=('conv1', 'bn1'))
        x = layer(x, narrow, 3, names=('conv2', 'bn2'))
        return layer(x, wide, 3, names=('conv3', 'bn3'), max_pool=max_pool)

    def pool(self, x: jax.Array) -> jax.Array:
        """Applies the max pooling that `pool=False` leaves out. 'cifar' has none."""
        return x if self.kind == 'cifar' else self._max_pool(x)

    def _max_pool(self, x: jax.Array) -> jax.Array:
        """Takes the largest values in 3x3 windows: [N, H, W, C] -> [N, ceil(H / 2), ceil(W / 2), C]."""
        return nn.max_pool(x, (3, 3), (2, 2), POOLS[self.padding])


class ResNet(nn.Module):
    """The encoder f: images to representations.

    Attributes:
        depth: Number of layers. 18 and 34 have basic blocks. 50, 101, 152 and 200 have bottlenecks. 6 and 10 are for
            tests: they have one basic block in each stage, and 6 has only two stages.
        width: Multiplier of each number of channels, above 0. The papers use 1 to 4. Fractions suit small machines.
        stem: 'cifar' for images of up to 32 pixels, otherwise 'imagenet'.
        sk_ratio: Ratio of selective kernels, 0.0625 in SimCLRv2, bottlenecks only. 0: none. Selective kernels bring
            the shortcuts of ResNet-D and, with the 'imagenet' stem, its stem.
        se_ratio: Ratio of squeeze-and-excitation, commonly 0.25. 0: none.
        output_stride: Most pixels of the image between neighbours on a feature map. Further strides are replaced by
            dilated convolutions with the same parameters, see `encoders.dilated`.
        dtype: Precision of the computation, float32 or bfloat16. Parameters, statistics and the representation are
            float32 in both cases.
        batch_norm_momentum: Share of the old moving statistics that each training step keeps.
        remat: Stages, out of 1 to 4, whose blocks are recomputed in the backward pass. Their activations take the
            memory of a block instead of a stage.
        pool: Padding of the max pooling in the 'imagenet' stem: 'same' as in TensorFlow, or 'symmetric' as in PyTorch.
            The two differ where the map has an even side.
        mean: Mean of each channel that is subtracted from the images. Empty: none, as in SimCLR.
        std: Number that each channel is divided by after that. Empty like `mean`.
        border: Pixels of zeros around the normalised images. solo-learn's networks for small images have 1.
        first_shortcut: Shortcut of the first block of stage 1 in depths below 50: a 'projection' as in SimCLR, or the
            'identity' as in torchvision and timm.

    Raises:
        ValueError: An attribute is outside of these values, or the input is not floating-point [N, H, W, C].
    """

    STAGES: ClassVar = {
        6: (1, 1),
        10: (1, 1, 1, 1),
        18: (2, 2, 2, 2),
        34: (3, 4, 6, 3),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
        200: (3, 24, 36, 3),
    }

    depth: int
    width: float = 1.0
    stem: str = 'cifar'
    sk_ratio: float = 0.0
    se_ratio: float = 0.0
    output_stride: int = 32
    dtype: Any = jnp.float32
    batch_norm_momentum: float = BATCH_NORM_MOMENTUM
    remat: tuple[int, ...] = ()
    pool: str = 'same'
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    border: int = 0
    first_shortcut: str = 'projection'

    def __post_init__(self):
        super().__post_init__()
        if self.depth not in self.STAGES:
            raise ValueError(f'depth={self.depth} is unknown; choose one of {sorted(self.STAGES)}')
        if self.pool not in POOLS:
            raise ValueError(f"pool='{self.pool}' is unknown; choose one of {tuple(POOLS)}")
        if self.first_shortcut not in SHORTCUTS:
            raise ValueError(f"first_shortcut='{self.first_shortcut}' is unknown; choose one of {SHORTCUTS}")
        if self.sk_ratio > 0 and not self.bottleneck:
            raise ValueError(
                f'sk_ratio={self.sk_ratio}: selective kernels are the 3x3 convolutions of bottlenecks, and '
                f'depth={self.depth} has none; choose depth 50 or more, or sk_ratio 0'
            )
        check_common(self)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts: 'stem', 'stage1', ..., in most depths up to 'stage4'."""
        return 'stem', *(f'stage{index + 1}' for index in range(len(self.STAGES[self.depth])))

    @property
    def title(self) -> str:
        """Name and size for people."""
        return f'ResNet-{self.depth} x{self.width:g}'

    @property
    def is_random(self) -> bool:
        """Whether training draws random numbers. It does not."""
        return False

    @property
    def batch_norm_epsilon(self) -> float:
        """Constant in the batch norms."""
        return BATCH_NORM_EPSILON

    @property
    def bottleneck(self) -> bool:
        """Whether the blocks are bottlenecks."""
        return self.depth >= 50

    @property
    def projects_first(self) -> bool:
        """Whether the shortcut of the first block of stage 1 is a convolution."""
        return self.bottleneck or self.first_shortcut == 'projection'

    @property
    def feature_width(self) -> int:
        """Number F of values of a representation."""
        last = len(self.STAGES[self.depth]) - 1
        return scaled_width(64 * 2**last, self.width) * (4 if self.bottleneck else 1)

    @property
    def stem_stride(self) -> int:
        """Pixels of the image between neighbours on the stem's map, behind its max pooling."""
        return 1 if self.stem == 'cifar' else 4

    def geometry(self) -> list[tuple[int, tuple[int, int]]]:
        """The stride of each stage, and its dilations, see `encoders.dilated`."""
        strides = [1 if index == 0 else 2 for index in range(len(self.STAGES[self.depth]))]
        return dilated(strides, self.stem_stride, self.output_stride)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, frozen: int = 0, maps: bool = False) -> Any:
        """Encodes images, see `encoders.Encoder`."""
        x = prepared(x, self.mean, self.std)
        if self.border:
            x = jnp.pad(x, ((0, 0), (self.border, self.border), (self.border, self.border), (0, 0)))
        check_frozen(self.parts, frozen)
        frozen_parts = self.parts[:frozen]
        norm = functools.partial(BatchNorm, momentum=self.batch_norm_momentum)
        kind = 'resnet_d' if self.sk_ratio > 0 and self.stem == 'imagenet' else self.stem
        stem = Stem(kind, self.width, self.dtype, norm, self.pool, name='stem')
        # Without its map, the stem pools before it normalises, which is cheaper.
        x = stem(x, train=train and 'stem' not in frozen_parts, pool=not maps)
        if 'stem' in frozen_parts:
            x = jax.lax.stop_gradient(x)
        found = {'stem': x}
        if maps:
            x = stem.pool(x)
        geometry = self.geometry()
        for index, blocks in enumerate(self.STAGES[self.depth]):
            name = self.parts[index + 1]
            strides, dilations = geometry[index]
            stage = Stage(
                blocks=blocks,
                filters=scaled_width(64 * 2**index, self.width),
                strides=strides,
                bottleneck=self.bottleneck,
                sk_ratio=self.sk_ratio,
                se_ratio=self.se_ratio,
                dtype=self.dtype,
                norm=norm,
                remat=index + 1 in self.remat,
                dilations=dilations,
                project=index > 0 or self.projects_first,
                name=name,
            )
            x = stage(x, train=train and name not in frozen_parts)
            if name in frozen_parts:
                x = jax.lax.stop_gradient(x)
            found[name] = x
        h = at_least_float32(x).mean((1, 2))
        return (h, found) if maps else h
