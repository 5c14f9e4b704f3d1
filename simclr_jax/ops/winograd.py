"""3x3 convolutions of stride 1 by Winograd's minimal filtering F(4x4, 3x3) (arXiv 1509.09308, section 4).

Along one axis, four outputs y of the filter w over six inputs x are y = A [(G w) * (B x)], six products in place of
twelve; on both axes a tile of 4x4 outputs takes 36 products of channels in place of 144.

B and A of all tiles of an axis are one matrix here, mostly of zeros: such a product goes once over what it reads,
which costs less than windows that are copied first. Its operations are not counted as the network's (`SCOPE`).
Arrays below are images [n, h, w, c] and products [(i, r), (j, s), n, c], with i and j the number of the product and
r and s the tile, by rows and by columns.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

TILE = 4
# Exact in binary, and with half the error of the usual 0, +-1 and +-2, three times that of summing directly.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
SCOPE = 'minimal_filtering'


def _transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B [6, 6], G [6, 3] and A [4, 6] of one tile.

    With p_1..p_5 the points of interpolation, a sixth one being at infinity,

    - A evaluates: A[i, j] = p_j^i;
    - G is the same, divided by prod_{k != j} (p_j - p_k);
    - B has in row j the coefficients of prod_{k != j} (x - p_k), in the last one those of the product of all.
    """
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
    return image, kernel, output


IMAGE, KERNEL, OUTPUT = _transforms()
PRODUCTS = len(KERNEL)


@dataclasses.dataclass(frozen=True)
class _Axis:
    """B and A of all tiles along one axis of images with a zero before and one behind."""

    # [(i, r), h]
    image: np.ndarray
    # [h, (i, r)]
    output: np.ndarray


@functools.cache
def _axis(size: int) -> _Axis:
    tiles = -(-size // TILE)
    image = np.zeros((PRODUCTS, tiles, TILE * tiles + 2))
    output = np.zeros((TILE * tiles, PRODUCTS, tiles))
    for tile in range(tiles):
        first = TILE * tile
        image[:, tile, first : first + PRODUCTS] = IMAGE
        output[first : first + TILE, :, tile] = OUTPUT
    # What is beyond the image is zero or is not asked for.
    return _Axis(image[:, :, 1 : 1 + size].reshape(-1, size), output[:size].reshape(size, -1))


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[n, h, w, c] and [3, 3, c, d] -> [n, h, w, d], the images surrounded by one row and column of zeros."""
    rows, columns = (_axis(size) for size in x.shape[1:3])
    with jax.named_scope(SCOPE):
        products = _multiply(_split(rows.image, columns.image, x), kernel)
        return _join(rows.output, columns.output, products)


def image_gradient(kernel: jax.Array, dy: jax.Array) -> jax.Array:
    """The transpose of `convolve` in the images: [3, 3, c, d] and [n, h, w, d] -> [n, h, w, c]."""
    rows, columns = (_axis(size) for size in dy.shape[1:3])
    with jax.named_scope(SCOPE):
        products = _multiply(_split(rows.output.T, columns.output.T, dy), kernel.swapaxes(2, 3))
        return _join(rows.image.T, columns.image.T, products)


def kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The transpose of `convolve` in the kernel: [n, h, w, c] and [n, h, w, d] -> [3, 3, c, d]."""
    rows, columns = (_axis(size) for size in x.shape[1:3])
    with jax.named_scope(SCOPE):
        images = _split(rows.image, columns.image, x)
        outputs = _split(rows.output.T, columns.output.T, dy)
        images, outputs = (part.reshape(-1, *part.shape[2:]) for part in (images, outputs))
        sums = jax.lax.dot_general(images, outputs, (((1,), (1,)), ((0,), (0,))))
        sums = sums.reshape(PRODUCTS, -1, PRODUCTS, len(columns.image) // PRODUCTS, *sums.shape[1:]).sum((1, 3))
        return _transform(KERNEL.T, KERNEL.T, sums)


def _split(rows: np.ndarray, columns: np.ndarray, x: jax.Array) -> jax.Array:
    """Images [n, h, w, c] -> [(i, r), (j, s), n, c]."""
    return _transform(rows, columns, x.transpose(1, 2, 0, 3))


def _join(rows: np.ndarray, columns: np.ndarray, products: jax.Array) -> jax.Array:
    """[(i, r), (j, s), n, c] -> images [n, h, w, c]."""
    return _transform(rows, columns, products).transpose(2, 0, 1, 3)


def _multiply(tiles: jax.Array, kernel: jax.Array) -> jax.Array:
    """[(i, r), (j, s), n, c] and [3, 3, c, d] -> [(i, r), (j, s), n, d]."""
    factors = _transform(KERNEL, KERNEL, kernel)
    factors = jnp.repeat(factors, len(tiles) // PRODUCTS, axis=0).reshape(-1, *factors.shape[2:])
    # The images' axis stays one of its own: merged with others it could not be divided among devices.
    by_factor = tiles.reshape(len(factors), -1, *tiles.shape[2:])
    return jax.lax.dot_general(by_factor, factors, (((3,), (1,)), ((0,), (0,)))).reshape(*tiles.shape[:3], -1)


def _transform(rows: np.ndarray, columns: np.ndarray, x: jax.Array) -> jax.Array:
    """rows [p, h] @ x [h, w, ...] @ columns [q, w]^T -> [p, q, ...], by products of contiguous matrices."""
    rows, columns = rows.astype(x.dtype), columns.astype(x.dtype)
    x = jax.lax.dot_general(rows, x, (((1,), (0,)), ((), ())))
    return jax.lax.dot_general(jnp.broadcast_to(columns, (len(rows), *columns.shape)), x, (((2,), (1,)), ((0,), (0,))))
