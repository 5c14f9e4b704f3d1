"""3x3 convolutions of stride 1 by Winograd's minimal filtering F(4x4, 3x3) (arXiv 1509.09308, section 4).

Along one axis, four outputs y of a filter w over six inputs x are y = A [(G w) * (B x)]. That is six products instead
of twelve. On both axes, a tile of 4x4 outputs takes 36 products of channels instead of 144.

Here the matrices B of all tiles of an axis form one matrix, and so do the matrices A. Most of its entries are zero. A
product with it reads its operand once, which costs less than windows that are copied first. Counts of a network's
operations leave these products out (`SCOPE`).

Arrays below are images [n, h, w, c] and products [(i, r), (j, s), n, c]. i and r are the number of the product and the
tile along the rows, j and s along the columns.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

TILE = 4
# These points are exact in binary. Their error is half of that of the usual points 0, +-1 and +-2, and three times
# that of a direct sum.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
SCOPE = 'minimal_filtering'


def _transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes B [6, 6], G [6, 3] and A [4, 6] of one tile.

    Let p_1 to p_5 be the points of interpolation. A sixth point lies at infinity.

    - A evaluates polynomials: A[i, j] = p_j^i.
    - G evaluates too, divided by prod_{k != j} (p_j - p_k).
    - Row j of B holds the coefficients of prod_{k != j} (x - p_k). The last row holds those of the product over all k.
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
    """Matrices of all tiles along one axis, for images with one zero before and one zero behind.

    Attributes:
        image: Matrices B of all tiles, [(i, r), h].
        output: Matrices A of all tiles, [h, (i, r)].
    """

    image: np.ndarray
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
    # Inputs beyond the image are zero, and outputs beyond it are not needed.
    return _Axis(image[:, :, 1 : 1 + size].reshape(-1, size), output[:size].reshape(size, -1))


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves images that are surrounded by one row and column of zeros.

    Args:
        x: Images [n, h, w, c].
        kernel: Kernel [3, 3, c, d].

    Returns:
        Images [n, h, w, d].
    """
    rows, columns = (_axis(size) for size in x.shape[1:3])
    with jax.named_scope(SCOPE):
        products = _multiply(_split(rows.image, columns.image, x), kernel)
        return _join(rows.output, columns.output, products)


def image_gradient(kernel: jax.Array, dy: jax.Array) -> jax.Array:
    """Computes the transpose of `convolve` in the images.

    Args:
        kernel: Kernel [3, 3, c, d].
        dy: Gradient of the result, [n, h, w, d].

    Returns:
        Gradient of the images, [n, h, w, c].
    """
    rows, columns = (_axis(size) for size in dy.shape[1:3])
    with jax.named_scope(SCOPE):
        products = _multiply(_split(rows.output.T, columns.output.T, dy), kernel.swapaxes(2, 3))
        return _join(rows.image.T, columns.image.T, products)


def kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Computes the transpose of `convolve` in the kernel.

    Args:
        x: Images [n, h, w, c].
        dy: Gradient of the result, [n, h, w, d].

    Returns:
        Gradient of the kernel, [3, 3, c, d].
    """
    rows, columns = (_axis(size) for size in x.shape[1:3])
    with jax.named_scope(SCOPE):
        images = _split(rows.image, columns.image, x)
        outputs = _split(rows.output.T, columns.output.T, dy)
        images, outputs = (part.reshape(-1, *part.shape[2:]) for part in (images, outputs))
        sums = jax.lax.dot_general(images, outputs, (((1,), (1,)), ((0,), (0,))))
        sums = sums.reshape(PRODUCTS, -1, PRODUCTS, len(columns.image) // PRODUCTS, *sums.shape[1:]).sum((1, 3))
        return _transform(KERNEL.T, KERNEL.T, sums)


def _split(rows: np.ndarray, columns: np.ndarray, x: jax.Array) -> jax.Array:
    """Splits images [n, h, w, c] into the inputs of the products, [(i, r), (j, s), n, c]."""
    return _transform(rows, columns, x.transpose(1, 2, 0, 3))


def _join(rows: np.ndarray, columns: np.ndarray, products: jax.Array) -> jax.Array:
    """Joins products [(i, r), (j, s), n, c] to images [n, h, w, c]."""
    return _transform(rows, columns, products).transpose(2, 0, 1, 3)


def _multiply(tiles: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies inputs [(i, r), (j, s), n, c] with a kernel [3, 3, c, d]: [(i, r), (j, s), n, d]."""
    factors = _transform(KERNEL, KERNEL, kernel)
    factors = jnp.repeat(factors, len(tiles) // PRODUCTS, axis=0).reshape(-1, *factors.shape[2:])
    # The axis of the images stays separate: merged with others it could not be divided among devices.
    by_factor = tiles.reshape(len(factors), -1, *tiles.shape[2:])
    return jax.lax.dot_general(by_factor, factors, (((3,), (1,)), ((0,), (0,)))).reshape(*tiles.shape[:3], -1)


def _transform(rows: np.ndarray, columns: np.ndarray, x: jax.Array) -> jax.Array:
    """Computes rows [p, h] @ x [h, w, ...] @ columns [q, w]^T, [p, q, ...], by products of contiguous matrices."""
    rows, columns = rows.astype(x.dtype), columns.astype(x.dtype)
    x = jax.lax.dot_general(rows, x, (((1,), (0,)), ((), ())))
    return jax.lax.dot_general(jnp.broadcast_to(columns, (len(rows), *columns.shape)), x, (((2,), (1,)), ((0,), (0,))))
