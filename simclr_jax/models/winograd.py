"""3x3 convolutions of stride 1 by Winograd's minimal filtering F(4x4, 3x3) (arXiv 1509.09308, section 4).

Images are cut into tiles of 4x4 outputs, which 6x6 inputs decide: y = A^T [(G w G^T) * (B^T d B)] A, 36 products of
channels a tile instead of 144. With p_1..p_5 the points of interpolation, a sixth one being at infinity,

- A^T [4, 6] evaluates: A^T[i, j] = p_j^i;
- G [6, 3] is the same, divided by prod_{k != j} (p_j - p_k);
- B^T [6, 6] has in row j the coefficients of prod_{k != j} (x - p_k), in the last one those of the product of all.

The points are 0, +-3/4 and +-3/2: exact in binary, and with half the error of the usual 0, +-1 and +-2, three times
that of summing directly.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

TILE = 4
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)


def _transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T [4, 6], G [6, 3] and B^T [6, 6]."""
    points = np.array(POINTS)
    powers = points[:, None] ** np.arange(TILE)
    output = np.vstack([powers, np.eye(TILE)[-1]]).T
    others = [np.delete(points, j) for j in range(len(points))]
    scale = np.array([np.prod(point - rest) for point, rest in zip(points, others, strict=True)])
    kernel = np.vstack([powers[:, :3] / scale[:, None], np.eye(3)[-1]])
    image = np.zeros((len(points) + 1, len(points) + 1))
    for j, rest in enumerate(others):
        image[j, : len(points)] = np.poly(rest)[::-1]
    image[-1] = np.poly(points)[::-1]
    return output, kernel, image


OUTPUT, KERNEL, IMAGE = _transforms()


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[N, H, W, C] and [3, 3, C, D] -> [N, H, W, D], the images surrounded by one row and column of zeros."""
    factors = _on_both_axes(KERNEL, kernel).reshape(36, *kernel.shape[2:])
    products = jax.lax.dot_general(_image_tiles(x), factors, (((2,), (1,)), ((0,), (0,))))
    return _join_tiles(products, x.shape)


def kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The transpose of `convolve` in the kernel: [N, H, W, C] and [N, H, W, D] -> [3, 3, C, D]."""
    products = jax.lax.dot_general(_image_tiles(x), _output_tiles(dy), (((1,), (1,)), ((0,), (0,))))
    return _on_both_axes(KERNEL.T, products.reshape(6, 6, *products.shape[1:]))


def image_gradient(kernel: jax.Array, dy: jax.Array) -> jax.Array:
    """The transpose of `convolve` in the images: [3, 3, C, D] and [N, H, W, D] -> [N, H, W, C]."""
    return convolve(dy, kernel[::-1, ::-1].swapaxes(2, 3))


def _along(matrix: np.ndarray, parts: Sequence[jax.Array]) -> jax.Array:
    """matrix [m, k] @ the k parts, along a new first axis."""
    x = jnp.stack(parts)
    # The images' axis stays one of its own: merged with others it could not be divided among devices.
    return jnp.tensordot(matrix.astype(x.dtype), x, 1)


def _on_both_axes(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """(matrix [m, k] @ x[:, :, ...] @ matrix^T)^T: [k, k, ...] -> [m, m, ...]."""
    x = _along(matrix, list(x))
    return _along(matrix, [x[:, k] for k in range(matrix.shape[1])])


def _image_tiles(x: jax.Array) -> jax.Array:
    """B^T d B of each tile: [n, H, W, C] -> [36 (columns, rows), n * tiles, C]."""
    height, width = x.shape[1:3]
    rows, columns = -(-height // TILE), -(-width // TILE)
    beyond = [(1, 1 + tiles * TILE - size) for tiles, size in ((rows, height), (columns, width))]
    x = jnp.pad(x, [(0, 0), *beyond, (0, 0)])
    x = _along(IMAGE, [x[:, k : k + TILE * rows - TILE + 1 : TILE] for k in range(6)])
    x = _along(IMAGE, [x[:, :, :, k : k + TILE * columns - TILE + 1 : TILE] for k in range(6)])
    return x.reshape(36, -1, x.shape[-1])


def _output_tiles(dy: jax.Array) -> jax.Array:
    """A dy A^T of each tile: [n, H, W, D] -> [36 (columns, rows), n * tiles, D]."""
    dy = jnp.pad(dy, [(0, 0), (0, -dy.shape[1] % TILE), (0, -dy.shape[2] % TILE), (0, 0)])
    dy = _along(OUTPUT.T, [dy[:, k::TILE] for k in range(TILE)])
    dy = _along(OUTPUT.T, [dy[:, :, :, k::TILE] for k in range(TILE)])
    return dy.reshape(36, -1, dy.shape[-1])


def _join_tiles(products: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A^T m A of each tile, put together: [36 (columns, rows), n * tiles, D] -> [n, H, W, D], `shape` but for D."""
    images, height, width = shape[:3]
    rows, columns = -(-height // TILE), -(-width // TILE)
    y = _on_both_axes(OUTPUT, products.reshape(6, 6, images, rows, columns, -1))
    # [row, column of a tile, n, rows, columns, D] -> images
    y = y.transpose(2, 3, 0, 4, 1, 5).reshape(images, rows * TILE, columns * TILE, -1)
    return y[:, :height, :width]
