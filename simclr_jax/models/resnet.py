"""The encoder: ResNet (arXiv 1512.03385), optionally with selective kernels or squeeze-and-excitation.

Depths and widths are those of SimCLR (arXiv 2002.05709, appendix B.6 and B.9) and SimCLRv2 (arXiv 2006.10029,
section 3 and appendix C.1). Parameters are named after their place: stage2/block1/conv1/kernel.
"""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.batch_norm import BATCH_NORM_MOMENTUM, BatchNorm
from simclr_jax.models.blocks import Stage
from simclr_jax.models.layers import conv_bn
from simclr_jax.ops.precision import at_least_float32

STEMS = ('cifar', 'imagenet')
# Shortcuts of the first block of stage 1.
SHORTCUTS = ('projection', 'identity')
# Paddings of the stem's max pooling, for the rows and the columns: before and after. TensorFlow's SAME depends on the
# parity of the map.
POOLS = {'same': 'SAME', 'symmetric': ((1, 1), (1, 1))}
# Parts of an encoder, from the image up.
PARTS = ('stem', 'stage1', 'stage2', 'stage3', 'stage4')


def frozen_parts(train_after_block: int) -> tuple[str, ...]:
    """Names the parts of the encoder that do not learn.

    Args:
        train_after_block: Last frozen part. -1: everything learns. 0: the stem is frozen. k from 1 to 4: the stem and
            stages 1 to k are frozen.

    Returns:
        The first train_after_block + 1 names of PARTS.

    Raises:
        ValueError: train_after_block is none of these.
    """
    if not -1 <= train_after_block < len(PARTS):
        raise ValueError(
            f'train_after_block={train_after_block} must be -1 (train everything), 0 (freeze the stem) or the '
            f'number of stages to freeze with it, at most {len(PARTS) - 1}'
        )
    return PARTS[: train_after_block + 1]


def is_in_frozen_part(path: tuple[str, ...], train_after_block: int) -> bool:
    """Whether the parameter at a path of a classifier, such as ('encoder', 'stage1', ...), must not move."""
    return path[0] == 'encoder' and path[1] in frozen_parts(train_after_block)


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
            dilated convolutions with the same parameters, see `geometry`.
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
        if self.stem not in STEMS:
            raise ValueError(f"stem='{self.stem}' is unknown; choose one of {STEMS}")
        if self.pool not in POOLS:
            raise ValueError(f"pool='{self.pool}' is unknown; choose one of {tuple(POOLS)}")
        if self.first_shortcut not in SHORTCUTS:
            raise ValueError(f"first_shortcut='{self.first_shortcut}' is unknown; choose one of {SHORTCUTS}")
        if len(self.mean) != len(self.std):
            raise ValueError(f'mean={self.mean}, std={self.std}: set both or neither, each with a number per channel')
        if self.width <= 0:
            raise ValueError(f'width={self.width} must be positive')
        if self.sk_ratio > 0 and not self.bottleneck:
            raise ValueError(
                f'sk_ratio={self.sk_ratio}: selective kernels are the 3x3 convolutions of bottlenecks, and '
                f'depth={self.depth} has none; choose depth 50 or more, or sk_ratio 0'
            )
        allowed = [stride for stride in (1, 2, 4, 8, 16, 32) if stride >= self.stem_stride]
        if self.output_stride not in allowed:
            raise ValueError(
                f"output_stride={self.output_stride}: stem='{self.stem}' allows {', '.join(map(str, allowed))}"
            )

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
        """The stride of each stage, and its dilations, see `Stage`.

        A stage whose stride would exceed `output_stride` has stride 1. The convolutions behind the strided one have
        twice the dilation, so that their taps lie on the places that the stride would keep. The strided convolution
        itself keeps the dilation of the stage before.

        In inference mode, every n-th row and column of a map is then the map of the network with all strides. Selective
        kernels and squeeze-and-excitation are exceptions, because they take means over all places.

        Source: Yu et al., Dilated Residual Networks (arXiv 1705.09914), and `replace_stride_with_dilation` of
        torchvision's ResNet.
        """
        found, reached, dilation = [], self.stem_stride, 1
        for index in range(len(self.STAGES[self.depth])):
            strides, before = 1 if index == 0 else 2, dilation
            if reached * strides > self.output_stride:
                strides, dilation = 1, dilation * strides
            reached *= strides
            found.append((strides, (before, dilation)))
        return found

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        train_after_block: int = -1,
        intermediates: bool = False,
        unpooled_stem: bool = False,
    ) -> Any:
        """Encodes images.

        Args:
            x: Images [N, H, W, C], floats. SimCLR's preparation gives values in [0, 1].
            train: Whether to normalise with the statistics of the batch and update the moving ones. Otherwise the
                moving ones are used.
            train_after_block: Last frozen part, see `frozen_parts`. Frozen parts use their moving statistics, and no
                gradient reaches them.
            intermediates: Whether to return the feature maps too.
            unpooled_stem: Whether the stem's feature map is the one before its max pooling.

        Returns:
            Representations h [N, F]. With `intermediates` it is (h, maps), where maps holds the feature maps
            [N, height, width, channels] of 'stem', 'stage1', ..., 'stage4'.
        """
        _check_images(x)
        if self.mean:
            x = (x - jnp.asarray(self.mean, x.dtype)) / jnp.asarray(self.std, x.dtype)
        if self.border:
            x = jnp.pad(x, ((0, 0), (self.border, self.border), (self.border, self.border), (0, 0)))
        frozen = frozen_parts(train_after_block)
        norm = functools.partial(BatchNorm, momentum=self.batch_norm_momentum)
        kind = 'resnet_d' if self.sk_ratio > 0 and self.stem == 'imagenet' else self.stem
        stem = Stem(kind, self.width, self.dtype, norm, self.pool, name='stem')
        x = stem(x, train=train and 'stem' not in frozen, pool=not unpooled_stem)
        if 'stem' in frozen:
            x = jax.lax.stop_gradient(x)
        maps = {'stem': x}
        if unpooled_stem:
            x = stem.pool(x)
        geometry = self.geometry()
        for index, blocks in enumerate(self.STAGES[self.depth]):
            name = PARTS[index + 1]
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
            x = stage(x, train=train and name not in frozen)
            if name in frozen:
                x = jax.lax.stop_gradient(x)
            maps[name] = x
        h = at_least_float32(x).mean((1, 2))
        return (h, maps) if intermediates else h


def _check_images(x: jax.Array) -> None:
    if x.ndim != 4:
        raise ValueError(f'images of shape {x.shape} are not [N, H, W, C]; reshape views [B, V, H, W, C] to [B*V, ...]')
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f'images of dtype {x.dtype} are not floats in [0, 1]; divide bytes by 255')
