"""A ResNet-50 of Flax's own layers, written without regard to the compiled program. `tpu_step.py` compares with it."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

BLOCKS = (3, 4, 6, 3)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with its batch norm, and a shortcut."""

    filters: int
    strides: int
    project: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Computes maps [N, H / strides, W / strides, 4 * filters] of maps [N, H, W, C]."""
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype, padding=0)
        norm = functools.partial(nn.BatchNorm, not train, momentum=0.9, dtype=self.dtype)
        shortcut = x
        if self.project:
            shortcut = conv(4 * self.filters, (1, 1), self.strides, name='shortcut_conv')(x)
            shortcut = norm(name='shortcut_bn')(shortcut)
        x = nn.relu(norm(name='bn1')(conv(self.filters, (1, 1), name='conv1')(x)))
        x = nn.relu(norm(name='bn2')(conv(self.filters, (3, 3), self.strides, padding=1, name='conv2')(x)))
        x = conv(4 * self.filters, (1, 1), name='conv3')(x)
        return nn.relu(norm(name='bn3', scale_init=nn.initializers.zeros)(x) + shortcut)


class FlaxResNet(nn.Module):
    """The same network as `simclr_jax.models.resnet.ResNet` of depth 50 with ImageNet's stem."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Computes representations [N, 2048] float32 of images [N, H, W, 3]."""
        x = nn.Conv(64, (7, 7), 2, padding=3, use_bias=False, dtype=self.dtype, name='conv')(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype, name='bn')(x))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, blocks in enumerate(BLOCKS):
            for block in range(blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                name = f'stage{stage + 1}block{block + 1}'
                x = Bottleneck(64 * 2**stage, strides, block == 0, self.dtype, name=name)(x, train)
        return x.mean((1, 2), dtype=jnp.float32)
