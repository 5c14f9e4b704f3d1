"""Measures of a representation that need no labels. They show a collapse before an evaluation does.

The first five are cheap enough for every training step. They normalise z to unit length. Inside `jax.shard_map`,
`axis_name` names the mesh axis that splits the rows. Every member then returns the result of the global batch. Without
`axis_name`, z is the whole batch. The effective ranks run on the host in float64.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.ops.precision import precise_matmul
from simclr_jax.ops.similarities import gather_rows, global_mean, global_row_indices, in_blocks, l2_normalize


def alignment(z: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Mean squared distance of positive pairs on the unit sphere (Wang & Isola, arXiv 2005.10242, alpha = 2).

    Args:
        z: Vectors [B, V, D] of V >= 2 views of B images.
        axis_name: Mesh axis that splits the images. None if z is the whole batch.

    Returns:
        A scalar from 0 (all views of an image coincide) to 4. Unrelated views have an expected value of 2.

    Example:
        >>> print(alignment(jnp.array([[[1.0, 0.0], [0.0, 1.0]]])))
        2.0
    """
    z = l2_normalize(z)
    views = z.shape[1]
    distances = [jnp.sum(jnp.square(z - jnp.roll(z, shift, axis=1)), axis=-1) for shift in range(1, views)]
    return global_mean(jnp.mean(jnp.stack(distances)), axis_name)


def uniformity(z: jax.Array, axis_name: str | None = None, block_size: int | None = None) -> jax.Array:
    """Logarithm of the mean Gaussian potential on the unit sphere (Wang & Isola, arXiv 2005.10242, t = 2).

    It is log mean exp(-2 |x - y|^2) over all pairs of different rows of the global batch. The two views of one image
    are such a pair.

    Args:
        z: Vectors [..., D], at least two in all.
        axis_name: Mesh axis that splits the rows. None if z is the whole batch.
        block_size: Rows per block. Only the products of one block with all rows are in memory at a time. None: one
            block of all rows of this member.

    Returns:
        A scalar: 0 if all rows coincide, about -4 if many rows spread over a sphere of many dimensions.

    Raises:
        ValueError: z has fewer than two rows.

    Example:
        Opposite points have the squared distance 4.

        >>> print(f'{uniformity(jnp.array([[1.0, 0.0], [-1.0, 0.0]])):.4f}')
        -8.0000
    """
    rows, everything, row = _global_rows(z, axis_name)
    if everything.shape[0] < 2:
        raise ValueError(f'z has shape {z.shape}, one row; uniformity compares at least two')
    # The lengths are 1, but 0 for a row of zeros. Such rows coincide, so that a batch of zeros counts as collapsed.
    lengths = jnp.sum(jnp.square(everything), axis=-1)

    def mean_potential(rows: jax.Array, row: jax.Array) -> jax.Array:
        products = precise_matmul(rows, everything.T)
        potential = jnp.exp(-2 * (jnp.sum(jnp.square(rows), axis=-1)[:, None] + lengths - 2 * products))
        different = row[:, None] != jnp.arange(everything.shape[0], dtype=jnp.int32)
        return jnp.mean(potential, axis=1, where=different)

    means = in_blocks(mean_potential, (rows, row), block_size)
    return jnp.log(global_mean(jnp.mean(means), axis_name))


def neighbour_agreement(z: jax.Array, axis_name: str | None = None, block_size: int | None = None) -> jax.Array:
    """Share of the images that have the same nearest neighbour in one view as in another view.

    The nearest neighbour of an image in view v is another image. Its view v has the largest cosine similarity to view v
    of the image. Among equal ones it is the first image of the global batch.

    Args:
        z: Vectors [B, V, D] of V >= 2 views of B images.
        axis_name: Mesh axis that splits the images. None if z is the whole batch.
        block_size: Rows per block, see `uniformity`.

    Returns:
        A scalar from 0 to 1, the mean over all pairs of views. Unrelated views of N images have an expected value of
        1 / (N - 1). The value of collapsed views has no meaning, because all images are equally near.

    Raises:
        ValueError: There are fewer than two views, or the global batch is one image.
    """
    if z.ndim != 3 or z.shape[1] < 2:
        raise ValueError(f'z has shape {z.shape}; it must be [images, views, dimensions] with at least two views')
    views = z.shape[1]
    rows, everything, row = _global_rows(z, axis_name)
    if everything.shape[0] == views:
        raise ValueError(f'z has shape {z.shape}, one image; neighbour_agreement compares at least two')
    image = row[::views] // views

    def nearest(similarities: jax.Array, image: jax.Array) -> jax.Array:
        is_self = image[:, None] == jnp.arange(similarities.shape[1], dtype=jnp.int32)
        return jax.lax.argmax(jnp.where(is_self, -jnp.inf, similarities), 1, jnp.int32)

    # The views are selected by strides. A TPU would pad a last dimension of length `views` to 128.
    if block_size is None:
        # This product is of all views with all views, although only pairs of equal views are needed. `uniformity` and
        # the losses need the same product, so that the compiler computes it, and the gather before it, only once.
        products = precise_matmul(rows, everything.T)
        found = [nearest(products[view::views, view::views], image) for view in range(views)]
    else:
        found = [
            in_blocks(
                lambda rows, image, others=everything[view::views]: nearest(precise_matmul(rows, others.T), image),
                (rows[view::views], image),
                block_size,
            )
            for view in range(views)
        ]
    agrees = [one == other for one, other in itertools.combinations(found, 2)]
    return global_mean(jnp.mean(jnp.stack(agrees).astype(rows.dtype)), axis_name)


def standard_deviation(z: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Standard deviation of each dimension of unit-length z over the rows, averaged over the dimensions.

    Args:
        z: Vectors [..., D].
        axis_name: Mesh axis that splits the rows. None if z is the whole batch.

    Returns:
        A scalar from 0 (collapse) to 1 / sqrt(D) (spread evenly over the sphere). The variance is the mean square, a
        sum divided by the number of rows.
    """
    rows = l2_normalize(z).reshape(-1, z.shape[-1])
    mean = global_mean(jnp.mean(rows, axis=0), axis_name)
    variance = global_mean(jnp.mean(jnp.square(rows - mean), axis=0), axis_name)
    return jnp.mean(jnp.sqrt(variance))


def gram(z: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Second moments of unit-length z, Z^T Z / rows, for `effective_rank_from_gram`.

    Args:
        z: Vectors [..., D].
        axis_name: Mesh axis that splits the rows. None if z is the whole batch.

    Returns:
        Symmetric matrix [D, D] with trace 1.
    """
    rows = l2_normalize(z).reshape(-1, z.shape[-1])
    products = precise_matmul(rows.T, rows)
    return global_mean(products / rows.shape[0], axis_name)


def effective_rank_from_gram(gram: np.ndarray) -> float:
    """Effective rank of rows, from their Gram matrix. Its eigenvalues are the squared singular values of the rows.

    Squaring halves the number of correct digits. Singular values below sqrt(D * eps) of the largest one are rounding
    errors and count as zero, where eps is the precision of the matrix. In float32 with D = 128 this limit is 0.4 %.
    `effective_rank` has no such limit.

    Args:
        gram: Symmetric, positive semi-definite matrix [D, D], as from `gram`.

    Returns:
        The effective rank, from 1 to D. 0 for a matrix of zeros.

    Example:
        >>> round(effective_rank_from_gram(np.eye(4, dtype=np.float32) / 4), 6)
        4.0
    """
    gram = np.asarray(gram)
    eigenvalues = np.linalg.eigvalsh(gram.astype(np.float64))
    rounding = len(gram) * np.finfo(gram.dtype).eps * eigenvalues[-1]
    return _exponential_entropy(np.sqrt(np.where(eigenvalues > rounding, eigenvalues, 0.0)))


def effective_rank(features: np.ndarray) -> float:
    """Effective rank: exp of the entropy of the normalised singular values (RankMe, arXiv 2210.02885).

    The features are neither centred nor normalised. RankMe's constant 1e-7 inside of the logarithm is left out, because
    0 log 0 counts as 0.

    Args:
        features: Real numbers [rows, D].

    Returns:
        The effective rank, from 1 to min(rows, D). 0 if all features are zero.

    Example:
        >>> round(effective_rank(np.eye(3)), 6), round(effective_rank(np.ones((3, 5))), 6)
        (3.0, 1.0)
    """
    return _exponential_entropy(np.linalg.svd(np.asarray(features, np.float64), compute_uv=False))


def _exponential_entropy(singular_values: np.ndarray) -> float:
    positive = singular_values[singular_values > 0]
    if positive.size == 0:
        return 0.0
    share = positive / positive.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def _global_rows(z: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Unit-length rows of z [R, D], the rows of the global batch [G, D], and the indices [R] of the own rows in it."""
    rows = l2_normalize(z).reshape(-1, z.shape[-1])
    return rows, gather_rows(rows, axis_name), global_row_indices(rows.shape[0], axis_name)
