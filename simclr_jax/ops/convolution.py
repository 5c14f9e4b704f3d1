"""Convolutions, computed on CPUs in another way than on accelerators.

On CPUs, XLA's matrix products are near the processor's limit, and its gradients of convolutions up to 25 times slower
than that limit. In float32 on CPUs, convolutions are therefore computed as follows:

- 1x1 convolutions are matrix products.
- 3x3 convolutions of stride 1 take a quarter of the multiplications (ops/winograd.py). Between few channels only the
  gradient of the kernel does.
- Depthwise convolutions are sums of shifted products (ops/depthwise.py).
- For all other convolutions without groups, dilated ones among them, the gradient of the kernel is a product with the
  patches of the images.

Accelerators, and CPUs in other precisions, run `jax.lax.conv_general_dilated` and its gradients.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from simclr_jax.ops import depthwise, winograd

Padding = tuple[tuple[int, int], tuple[int, int]]

# Least number of channels and largest side of images for each use of minimal filtering. Outside of these, the
# transforms take as long as the multiplications that they save.
WINOGRAD = 64, 32
WINOGRAD_KERNEL_GRADIENT = 8, 64


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, dilation: int = 1, groups: int = 1
) -> jax.Array:
    """Convolves images with a kernel, without bias.

    Args:
        x: Images [N, H, W, C].
        kernel: Kernel [K, K, C / groups, D], of the dtype of the images.
        stride: Stride of rows and columns.
        padding: Numbers of rows of zeros (before, after) and of columns of zeros (before, after).
        dilation: Distance in pixels between neighbouring taps of the kernel.
        groups: Number of groups of channels that are convolved by themselves. It divides C and D.

    Returns:
        Images [N, H', W', D].
    """
    return _convolution(stride, padding, dilation, groups)(x, kernel)


def between_convolutions(function: Callable, images: Any, vectors: Any) -> tuple[Any, Any]:
    """Computes `function(images, vectors)` in the order of axes that the convolutions around it use.

    The function must not depend on the order of the first three axes of the images. Some convolutions keep images as
    [H, W, N, C] inside, see `ops/winograd.py`. Between these the function gets images in that order too. The
    transposes of neighbours then cancel. Otherwise XLA would compute in one order and write in another, which is slow.

    Args:
        function: Function of (images, vectors) that returns images and vectors.
        images: Tree of images [N, H, W, C]. Its first leaf is the result of a convolution.
        vectors: Tree of arrays that have no such axes.

    Returns:
        The result of the function.
    """
    x = jax.tree.leaves(images)[0]
    if x.ndim != 4 or x.dtype != jnp.float32 or not _is_within(WINOGRAD, x.shape[-1], x.shape[1:3]):
        return function(images, vectors)

    def function_of_transposed(images, vectors):
        images, vectors = function(jax.tree.map(lambda image: image.transpose(1, 2, 0, 3), images), vectors)
        return jax.tree.map(lambda image: image.transpose(2, 0, 1, 3), images), vectors

    return jax.lax.platform_dependent(images, vectors, cpu=function_of_transposed, default=function)


@dataclasses.dataclass(frozen=True)
class _Method:
    """Functions that compute a convolution and its transposes in both arguments.

    Attributes:
        forward: Function of (x, kernel) that returns the convolution.
        image_gradient: Function of (x, kernel, dy) that returns the gradient of x. Only the shape and the dtype of x
            matter to it.
        kernel_gradient: Function of (x, kernel, dy) that returns the gradient of the kernel. Only the shape and the
            dtype of the kernel matter to it.
    """

    forward: Callable[[jax.Array, jax.Array], jax.Array]
    image_gradient: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    kernel_gradient: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Residuals:
    x: jax.Array
    kernel: jax.Array
    # The gradient of a network's input is not computed: no one needs it.
    wants_images: bool = dataclasses.field(metadata={'static': True})


@functools.cache
def _convolution(
    stride: int, padding: Padding, dilation: int, groups: int
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Makes the differentiable function of (x, kernel)."""
    plain = _plain(stride, padding, dilation, groups)

    def choose(name: str, *arrays: jax.Array) -> jax.Array:
        x, kernel = arrays[:2]
        on_cpu = getattr(_on_cpu(x, kernel, stride, padding, dilation, groups), name)
        return jax.lax.platform_dependent(*arrays, cpu=on_cpu, default=getattr(plain, name))

    @jax.custom_vjp
    def convolve(x, kernel):
        return choose('forward', x, kernel)

    def forward(x, kernel):
        return convolve(x.value, kernel.value), _Residuals(x.value, kernel.value, x.perturbed)

    def backward(residuals, dy):
        arguments = residuals.x, residuals.kernel, dy
        images = choose('image_gradient', *arguments) if residuals.wants_images else None
        return images, choose('kernel_gradient', *arguments)

    convolve.defvjp(forward, backward, symbolic_zeros=True)
    return convolve


def _on_cpu(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, dilation: int, groups: int) -> _Method:
    plain = _plain(stride, padding, dilation, groups)
    if x.dtype != jnp.float32:
        return plain
    if groups == x.shape[-1] == kernel.shape[-1]:
        return _depthwise(stride, padding, dilation)
    if groups > 1:
        return plain
    border = padding[0][0] if len({*padding[0], *padding[1]}) == 1 else None
    if kernel.shape[0] == 1 and border == 0:
        return _from_forward(functools.partial(_pointwise, stride))
    if kernel.shape[0] == 3 and (border, stride, dilation) == (1, 1, 1):
        channels, sides = min(kernel.shape[2:]), x.shape[1:3]
        if _is_within(WINOGRAD, channels, sides):
            return _WINOGRAD
        if _is_within(WINOGRAD_KERNEL_GRADIENT, channels, sides):
            return dataclasses.replace(plain, kernel_gradient=_WINOGRAD.kernel_gradient)
    by_patches = functools.partial(_kernel_gradient_by_patches, stride, padding, dilation)
    return dataclasses.replace(plain, kernel_gradient=by_patches)


def _depthwise(stride: int, padding: Padding, dilation: int) -> _Method:
    geometry = stride, padding, dilation
    method = _from_forward(functools.partial(depthwise.convolve, *geometry))
    return dataclasses.replace(method, kernel_gradient=functools.partial(depthwise.kernel_gradient, *geometry))


def _is_within(limits: tuple[int, int], channels: int, sides: tuple[int, ...]) -> bool:
    return channels >= limits[0] and max(sides) <= limits[1]


def _from_forward(forward: Callable[[jax.Array, jax.Array], jax.Array]) -> _Method:
    """Makes a method whose transposes are those of XLA."""

    def image_gradient(x, kernel, dy):
        return jax.linear_transpose(lambda x: forward(x, kernel), x)(dy)[0]

    def kernel_gradient(x, kernel, dy):
        return jax.linear_transpose(lambda kernel: forward(x, kernel), kernel)(dy)[0]

    return _Method(forward, image_gradient, kernel_gradient)


def _plain(stride: int, padding: Padding, dilation: int, groups: int) -> _Method:
    def forward(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            padding,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            feature_group_count=groups,
        )

    return _from_forward(forward)


def _pointwise(stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    x = x[:, ::stride, ::stride]
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


_WINOGRAD = _Method(
    winograd.convolve,
    lambda x, kernel, dy: winograd.image_gradient(kernel, dy),
    lambda x, kernel, dy: winograd.kernel_gradient(x, dy),
)


def _kernel_gradient_by_patches(
    stride: int, padding: Padding, dilation: int, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> jax.Array:
    size, (rows, columns) = len(kernel), dy.shape[1:3]
    # Without this dependence on the backward pass, XLA makes the patches in the forward pass and keeps them.
    x = x + 0 * dy[:, :1, :1, :1]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    taps = [
        x[:, i : i + stride * rows - stride + 1 : stride, j : j + stride * columns - stride + 1 : stride]
        for i in range(0, dilation * size, dilation)
        for j in range(0, dilation * size, dilation)
    ]
    patches = jnp.concatenate(taps, -1)
    gradient = patches.reshape(-1, patches.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])
    return gradient.reshape(kernel.shape)
