"""The seam between encoders and their users: what every encoder offers, and what follows from its parts.

An encoder is a Flax module that fulfils `Encoder`. `build.ENCODERS` names all encoders.
"""

from collections.abc import Sequence
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp

# Stems of every encoder: for images of up to 32 pixels, and for larger ones.
STEMS = ('cifar', 'imagenet')
# Strides of a whole encoder, see `dilated`.
OUTPUT_STRIDES = (1, 2, 4, 8, 16, 32)


class Encoder(Protocol):
    """An encoder f: images to representations.

    It is a Flax module, whose attributes `batch_norm_momentum` and `output_stride` can be changed by `clone`:

    * `batch_norm_momentum`: Share of the old moving statistics that each training step keeps.
    * `output_stride`: Most pixels of the image between neighbours on a feature map, see `dilated`.

    Attributes:
        stem: One of STEMS.
        width: Multiplier of each number of channels.
        mean: Mean of each channel that is subtracted from the images. Empty: none.
        std: Number that each channel is divided by after that. Empty like `mean`.
    """

    stem: str
    width: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of its parts from the image up. The first is 'stem'. Its parameters lie under these names."""
        ...

    @property
    def feature_width(self) -> int:
        """Number F of values of a representation."""
        ...

    @property
    def title(self) -> str:
        """Name and size for people, for example 'ResNet-18 x0.25'."""
        ...

    @property
    def batch_norm_epsilon(self) -> float:
        """Constant that the batch norms add to the variance."""
        ...

    @property
    def is_random(self) -> bool:
        """Whether training draws random numbers. `apply` then needs rngs={'dropout': key}."""
        ...

    def clone(self, **attributes: Any) -> Self:
        """The encoder with other attributes. It has the same parameters."""
        ...

    def __call__(self, x: jax.Array, *, train: bool, frozen: int = 0, maps: bool = False) -> Any:
        """Encodes images.

        Args:
            x: Images [N, H, W, C], floats. SimCLR's preparation gives values in [0, 1].
            train: Whether to normalise with the statistics of the batch and update the moving ones. Otherwise the
                moving ones are used.
            frozen: Number of frozen parts, from the image up. Frozen parts use their moving statistics, and no gradient
                reaches them.
            maps: Whether to return the feature maps too.

        Returns:
            Representations h [N, F], at least float32. With `maps` it is (h, maps), where maps holds the feature maps
            [N, height, width, channels] of each part by its name. The stem's map is the one before its max pooling.
        """
        ...


def check_frozen(parts: Sequence[str], frozen: int) -> None:
    """Raises ValueError unless `frozen` is a number of parts."""
    if not 0 <= frozen <= len(parts):
        raise ValueError(
            f'frozen={frozen} must be from 0 (train everything) to {len(parts)}, the number of parts: '
            f'{", ".join(parts)}'
        )


def is_in_frozen_part(path: Sequence[str], encoder: Encoder, frozen: int) -> bool:
    """Whether a parameter must not move because a part of the encoder is frozen.

    Args:
        path: Path of the parameter in a model with an encoder, for example ('encoder', 'stem', 'conv', 'kernel').
        encoder: Encoder of the model.
        frozen: Number of frozen parts, see `Encoder`.
    """
    check_frozen(encoder.parts, frozen)
    return path[0] == 'encoder' and path[1] in encoder.parts[:frozen]


def prepared(x: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Checks images and normalises them: [N, H, W, C] -> [N, H, W, C].

    Args:
        x: Images, floats.
        mean: Mean of each channel that is subtracted. Empty: none.
        std: Number that each channel is divided by after that. Empty like `mean`.

    Raises:
        ValueError: The input is not floating-point [N, H, W, C].
    """
    if x.ndim != 4:
        raise ValueError(f'images of shape {x.shape} are not [N, H, W, C]; reshape views [B, V, H, W, C] to [B*V, ...]')
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f'images of dtype {x.dtype} are not floats in [0, 1]; divide bytes by 255')
    return (x - jnp.asarray(mean, x.dtype)) / jnp.asarray(std, x.dtype) if mean else x


def dilated(strides: Sequence[int], stem_stride: int, output_stride: int) -> list[tuple[int, tuple[int, int]]]:
    """The stride of each stage, and its dilations, for an encoder whose strides do not exceed a limit.

    A stage whose stride would exceed `output_stride` has stride 1. The convolutions behind the strided one have twice
    the dilation, so that their taps lie on the places that the stride would keep. The strided convolution itself keeps
    the dilation of the stage before.

    In inference mode, every n-th row and column of a map is then the map of the network with all strides. Selective
    kernels and squeeze-and-excitation are exceptions, because they take means over all places.

    Args:
        strides: Stride of each stage as published.
        stem_stride: Pixels of the image between neighbours on the map that the first stage gets.
        output_stride: Most pixels of the image between neighbours on a feature map.

    Returns:
        For each stage its stride, and the dilations of its first convolution and of all others.

    Source: Yu et al., Dilated Residual Networks (arXiv 1705.09914), and `replace_stride_with_dilation` of torchvision's
    ResNet.
    """
    found, reached, dilation = [], stem_stride, 1
    for stride in strides:
        before = dilation
        if reached * stride > output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        found.append((stride, (before, dilation)))
    return found


def check_common(encoder: Any) -> None:
    """Raises ValueError for a wrong value of an attribute that every encoder has."""
    if encoder.stem not in STEMS:
        raise ValueError(f"stem='{encoder.stem}' is unknown; choose one of {STEMS}")
    if len(encoder.mean) != len(encoder.std):
        raise ValueError(f'mean={encoder.mean}, std={encoder.std}: set both or neither, each with a number per channel')
    if encoder.width <= 0:
        raise ValueError(f'width={encoder.width} must be positive')
    allowed = [stride for stride in OUTPUT_STRIDES if stride >= encoder.stem_stride]
    if encoder.output_stride not in allowed:
        raise ValueError(
            f"output_stride={encoder.output_stride}: stem='{encoder.stem}' allows {', '.join(map(str, allowed))}"
        )
