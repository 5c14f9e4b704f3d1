"""The encoder: ResNet (arXiv 1512.03385), optionally with selective kernels or squeeze-and-excitation.

Depths and widths are those of SimCLR (2002.05709, appendix B.6 and B.9) and SimCLRv2 (2006.10029, section 3
and appendix C.1). Parameters are named after their place: stage2/block1/conv1/kernel.
"""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from simclr_jax.models.batch_norm import BATCH_NORM_MOMENTUM, BatchNorm
from simclr_jax.models.layers import Conv
from simclr_jax.ops.precision import at_least_float32
from simclr_jax.ops.rectifier import relu

STEMS = ('cifar', 'imagenet')
# What an encoder consists of, from the image up.
PARTS = ('stem', 'stage1', 'stage2', 'stage3', 'stage4')


def frozen_parts(train_after_block: int) -> tuple[str, ...]:
    """The parts of the encoder that do not learn when training starts after so many stages.

    Args:
        train_after_block: -1: everything learns; 0: the stem is frozen; k in 1..4: stem and stages 1..k.

    Returns:
        Names out of PARTS.

    Raises:
        ValueError: train_after_block is none of these.
    """
    if not -1 <= train_after_block < len(PARTS):
        raise ValueError(
            f'train_after_block={train_after_block} must be -1 (train everything), 0 (freeze the stem) or the '
            f'number of stages to freeze with it, at most {len(PARTS) - 1}'
        )
    return PARTS[: train_after_block + 1]


def scaled_width(channels: int, width: float) -> int:
    """The number of channels at a width multiplier: floor(channels * width), at least one."""
    return max(1, int(channels * width))


class Stem(nn.Module):
    """The layers before the first stage.

    'cifar': 3x3 convolution, for images of up to 32 pixels. 'imagenet': 7x7 convolution of stride 2 and max
    pooling of stride 2. 'resnet_d': the 7x7 replaced by three 3x3 (arXiv 1812.01187, figure 2b).
    """

    kind: str
    width: float
    dtype: Any
    norm: Any = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, pool: bool = True) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, 64 * width] for 'cifar', [N, H/4, W/4, 64 * width] otherwise."""
        narrow, wide = scaled_width(32, self.width), scaled_width(64, self.width)
        if self.kind == 'resnet_d':
            x = Conv(narrow, 3, 2, name='conv1', dtype=self.dtype)(x)
            x = self.norm(name='bn1').rectified(x, train=train)
            x = Conv(narrow, 3, name='conv2', dtype=self.dtype)(x)
            x = self.norm(name='bn2').rectified(x, train=train)
            x = Conv(wide, 3, name='conv3', dtype=self.dtype)(x)
            last = self.norm(name='bn3')
        else:
            kernel_size, strides = (3, 1) if self.kind == 'cifar' else (7, 2)
            x = Conv(wide, kernel_size, strides, name='conv', dtype=self.dtype)(x)
            last = self.norm(name='bn')
        if pool and self.kind != 'cifar':
            return relu(last.pooled(x, self.pool, train=train))
        return last.rectified(x, train=train)

    def pool(self, x: jax.Array) -> jax.Array:
        """What `pool=False` leaves out: [N, H/2, W/2, ...] -> [N, H/4, W/4, ...]; nothing for 'cifar'."""
        return x if self.kind == 'cifar' else nn.max_pool(x, (3, 3), (2, 2), 'SAME')


class SelectiveKernel(nn.Module):
    """Two streams of a 3x3 convolution, mixed by an attention over their pooled sum (arXiv 1903.06586).

    Both streams have the same receptive field, as in SimCLRv2, and come from one convolution.
    """

    features: int
    strides: int
    ratio: float
    dtype: Any
    norm: Any = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H / strides, W / strides, features]."""
        x = Conv(2 * self.features, 3, self.strides, name='conv', dtype=self.dtype)(x)
        x = self.norm(name='bn').rectified(x, train=train)
        streams = x.reshape(*x.shape[:-1], 2, self.features)

        context = streams.sum(3).mean((1, 2), keepdims=True)
        context = Conv(max(int(self.features * self.ratio), 32), 1, name='reduce', dtype=self.dtype)(context)
        context = self.norm(name='reduce_bn').rectified(context, train=train)
        context = Conv(2 * self.features, 1, name='expand', dtype=self.dtype)(context)
        attention = nn.softmax(context.reshape(-1, 1, 1, 2, self.features), axis=3)
        return (attention * streams).sum(3)


class SqueezeExcitation(nn.Module):
    """Scales every channel by a gate computed from the pooled channels (arXiv 1709.01507)."""

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, C]."""
        gate = x.mean((1, 2), keepdims=True)
        gate = relu(Conv(self.hidden, 1, name='reduce', dtype=self.dtype, use_bias=True)(gate))
        gate = Conv(x.shape[-1], 1, name='expand', dtype=self.dtype, use_bias=True)(gate)
        return x * nn.sigmoid(gate)


def _mean_pool_2x2(x: jax.Array, strides: int) -> jax.Array:
    """Mean over 2x2 windows that may reach one row and one column beyond the image.

    At stride 1 that border does not count, which repeating the last row and column amounts to; at stride 2,
    where only an odd size reaches it, it counts as zeros.
    """
    x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), mode='edge' if strides == 1 else 'constant')
    x = x[:, :-1:strides] + x[:, 1::strides]
    x = x[:, :, :-1:strides] + x[:, :, 1::strides]
    return x / 4


class ResidualBlock(nn.Module):
    """A residual block: two 3x3 convolutions, or the bottleneck 1x1, 3x3, 1x1 that ends four times as wide.

    Attributes:
        filters: channels of the 3x3 convolution.
        strides: of the first 3x3 convolution and of the shortcut.
        bottleneck: which of the two.
        project: whether the shortcut is a convolution or the identity.
        sk_ratio: 0, or the share of channels in the attention of selective kernels (bottlenecks only).
        se_ratio: 0, or the share of `filters` in the hidden layer of squeeze-and-excitation.
        dtype: of the computation.
        norm: makes the batch norms.
    """

    filters: int
    strides: int
    bottleneck: bool
    project: bool
    sk_ratio: float
    se_ratio: float
    dtype: Any
    norm: Any = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H / strides, W / strides, filters * (4 if bottleneck else 1)]."""
        shortcut = self._shortcut(x, train=train) if self.project else x
        return (self._bottleneck if self.bottleneck else self._basic)(x, shortcut, train=train)

    def _shortcut(self, x: jax.Array, *, train: bool) -> jax.Array:
        strides = self.strides
        if self.sk_ratio > 0:
            # ResNet-D: pool, so that the 1x1 convolution does not skip three quarters of its input.
            x, strides = _mean_pool_2x2(x, strides), 1
        features = self.filters * (4 if self.bottleneck else 1)
        norm = self.norm(name='shortcut_bn')
        return Conv(features, 1, strides, name='shortcut_conv', dtype=self.dtype).normalized(x, norm, train=train)

    def _basic(self, x: jax.Array, shortcut: jax.Array, *, train: bool) -> jax.Array:
        x = Conv(self.filters, 3, self.strides, name='conv1', dtype=self.dtype)(x)
        x = self.norm(name='bn1').rectified(x, train=train)
        x = Conv(self.filters, 3, name='conv2', dtype=self.dtype)(x)
        norm = self.norm(zero_scale=True, name='bn2')
        if self.se_ratio == 0:
            return norm.rectified(x, shortcut, train=train)
        return relu(self._excited(norm(x, train=train)) + shortcut)

    def _bottleneck(self, x: jax.Array, shortcut: jax.Array, *, train: bool) -> jax.Array:
        x = Conv(self.filters, 1, name='conv1', dtype=self.dtype)(x)
        x = self.norm(name='bn1').rectified(x, train=train)
        if self.sk_ratio > 0:
            kernels = SelectiveKernel(self.filters, self.strides, self.sk_ratio, self.dtype, self.norm, name='sk')
            x = kernels(x, train=train)
        else:
            x = Conv(self.filters, 3, self.strides, name='conv2', dtype=self.dtype)(x)
            x = self.norm(name='bn2').rectified(x, train=train)
        norm = self.norm(zero_scale=True, name='bn3')
        x = Conv(4 * self.filters, 1, name='conv3', dtype=self.dtype).normalized(x, norm, train=train)
        return relu(self._excited(x) + shortcut)

    def _excited(self, x: jax.Array) -> jax.Array:
        if self.se_ratio == 0:
            return x
        return SqueezeExcitation(max(1, int(self.filters * self.se_ratio)), self.dtype, name='se')(x)


class Stage(nn.Module):
    """Residual blocks of one width; the first one changes the resolution and projects its shortcut.

    With `remat` the backward pass makes each block's activations anew from the block's input.
    """

    blocks: int
    filters: int
    strides: int
    bottleneck: bool
    sk_ratio: float
    se_ratio: float
    dtype: Any
    norm: Any = BatchNorm
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, C] -> [N, H / strides, W / strides, filters * (4 if bottleneck else 1)]."""
        make_block = nn.remat(ResidualBlock, static_argnums=(2,)) if self.remat else ResidualBlock
        for index in range(self.blocks):
            block = make_block(
                filters=self.filters,
                strides=self.strides if index == 0 else 1,
                bottleneck=self.bottleneck,
                project=index == 0,
                sk_ratio=self.sk_ratio,
                se_ratio=self.se_ratio,
                dtype=self.dtype,
                norm=self.norm,
                name=f'block{index + 1}',
            )
            x = block(x, train)
        return x


class ResNet(nn.Module):
    """The encoder f: images to representations.

    Attributes:
        depth: 18, 34 (basic blocks), 50, 101, 152 or 200 (bottlenecks). 6 and 10 are for tests: one basic block in
            each stage, with 6 in two stages.
        width: multiplies every number of channels; 1 to 4 in the papers, fractions for small machines.
        stem: 'cifar' for images of up to 32 pixels, otherwise 'imagenet'.
        sk_ratio: 0, or the ratio of selective kernels (SimCLRv2: 0.0625). They bring ResNet-D's shortcuts
            and, with the 'imagenet' stem, its stem; bottlenecks only.
        se_ratio: 0, or the ratio of squeeze-and-excitation (commonly 0.25).
        dtype: of the computation, float32 or bfloat16; parameters, statistics and the representation are
            float32 either way.
        batch_norm_momentum: what moving statistics keep of themselves in each training step.
        remat: stages out of 1 to 4 whose blocks are computed once more in the backward pass, which needs the memory
            of a block instead of a stage.

    Raises:
        ValueError: an attribute is outside of these; or the input is not floating-point [N, H, W, C].
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
    dtype: Any = jnp.float32
    batch_norm_momentum: float = BATCH_NORM_MOMENTUM
    remat: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if self.depth not in self.STAGES:
            raise ValueError(f'depth={self.depth} is unknown; choose one of {sorted(self.STAGES)}')
        if self.stem not in STEMS:
            raise ValueError(f"stem='{self.stem}' is unknown; choose one of {STEMS}")
        if self.width <= 0:
            raise ValueError(f'width={self.width} must be positive')
        if self.sk_ratio > 0 and not self.bottleneck:
            raise ValueError(
                f'sk_ratio={self.sk_ratio}: selective kernels are the 3x3 convolutions of bottlenecks, and '
                f'depth={self.depth} has none; choose depth 50 or more, or sk_ratio 0'
            )

    @property
    def bottleneck(self) -> bool:
        """Whether the blocks are bottlenecks."""
        return self.depth >= 50

    @property
    def feature_width(self) -> int:
        """F, the number of values of a representation."""
        last = len(self.STAGES[self.depth]) - 1
        return scaled_width(64 * 2**last, self.width) * (4 if self.bottleneck else 1)

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
            x: [N, H, W, C] floats, in [0, 1] for images as SimCLR prepares them.
            train: normalise with the batch's statistics and move the moving ones, or use these.
            train_after_block: which parts are frozen, see `frozen_parts`. They are always in inference mode,
                and no gradient reaches them.
            intermediates: whether to return the feature maps as well.
            unpooled_stem: whether the stem's feature map is the one before its max pooling.

        Returns:
            The representations h [N, F]; with `intermediates` (h, maps), maps being {'stem', 'stage1', ...,
            'stage4'}: [N, height, width, channels] each.
        """
        _check_images(x)
        frozen = frozen_parts(train_after_block)
        norm = functools.partial(BatchNorm, momentum=self.batch_norm_momentum)
        kind = 'resnet_d' if self.sk_ratio > 0 and self.stem == 'imagenet' else self.stem
        stem = Stem(kind, self.width, self.dtype, norm, name='stem')
        x = stem(x, train=train and 'stem' not in frozen, pool=not unpooled_stem)
        if 'stem' in frozen:
            x = jax.lax.stop_gradient(x)
        maps = {'stem': x}
        if unpooled_stem:
            x = stem.pool(x)
        for index, blocks in enumerate(self.STAGES[self.depth]):
            name = PARTS[index + 1]
            stage = Stage(
                blocks=blocks,
                filters=scaled_width(64 * 2**index, self.width),
                strides=1 if index == 0 else 2,
                bottleneck=self.bottleneck,
                sk_ratio=self.sk_ratio,
                se_ratio=self.se_ratio,
                dtype=self.dtype,
                norm=norm,
                remat=index + 1 in self.remat,
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
