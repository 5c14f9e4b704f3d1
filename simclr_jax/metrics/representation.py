"""Measures of a representation that need no labels: collapse shows here before an evaluation does.

The first five are cheap enough for every training step. Inside `jax.shard_map`, `axis_name` names the mesh
axis that splits the rows, and the result is that of the global batch on every member; outside, z is the whole
batch. All of them normalise z to unit length first. The effective ranks run on the host in float64.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.ops.similarities import l2_normalize


def alignment(z: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Mean squared distance of positive pairs on the unit sphere (Wang & Isola, arXiv 2005.10242, alpha = 2).

    Args:
        z: [B, V, D], V >= 2 views of each of B images.
        axis_name: mesh axis that splits the images.

    Returns:
        A scalar from 0 (all views of an image coincide) to 4; 2 is to be expected of unrelated views.
    """
    z = l2_normalize(z)
    views = z.shape[1]
    distances = [jnp.sum(jnp.square(z - jnp.roll(z, shift, axis=1)), axis=-1) for shift in range(1, views)]
    return _global_mean(jnp.mean(jnp.stack(distances)), axis_name)


def uniformity(z: jax.Array, axis_name: str | None = None, block_size: int | None = None) -> jax.Array:
    """Logarithm of the mean Gaussian potential on the unit sphere (Wang & Isola, arXiv 2005.10242, t = 2).

    log mean exp(-2 |x - y|^2) over all pairs of different rows of the global batch: a row is not paired
    with itself, two views of one image are.

    Args:
        z: [..., D], at least two rows in all.
        axis_name: mesh axis that splits the rows.
        block_size: rows whose products with all others are in memory at a time; None: all of this member's.

    Returns:
        A scalar: about -4 for many rows spread over a sphere of many dimensions, 0 where all rows coincide.

    Raises:
        ValueError: fewer than two rows.
    """
    rows, everything, row = _global_rows(z, axis_name)
    if everything.shape[0] < 2:
        raise ValueError(f'z has shape {z.shape}, one row; uniformity compares at least two')
    # The lengths are 1, or 0 for a row of zeros: a batch of those is collapsed, not spread.
    lengths = jnp.sum(jnp.square(everything), axis=-1)

    def mean_potential(rows: jax.Array, row: jax.Array) -> jax.Array:
        products = _products(rows, everything)
        potential = jnp.exp(-2 * (jnp.sum(jnp.square(rows), axis=-1)[:, None] + lengths - 2 * products))
        different = row[:, None] != jnp.arange(everything.shape[0], dtype=jnp.int32)
        return jnp.mean(potential, axis=1, where=different)

    means = _in_blocks(mean_potential, (rows, row), block_size)
    return jnp.log(_global_mean(jnp.mean(means), axis_name))


def neighbour_agreement(z: jax.Array, axis_name: str | None = None, block_size: int | None = None) -> jax.Array:
    """Share of the images whose nearest neighbour is the same image in one view as in another.

    The nearest neighbour of an image in view v is the other image whose view v is the most similar to its
    own by cosine; of equal ones the first of the global batch.

    Args:
        z: [B, V, D], V >= 2 views of each of B images.
        axis_name: mesh axis that splits the images.
        block_size: see `uniformity`.

    Returns:
        A scalar from 0 to 1, the mean over all pairs of views; 1 / (N - 1) is to be expected of unrelated views
        of N images. Of collapsed ones it says nothing, for there all are equally near.

    Raises:
        ValueError: fewer than two views, or a global batch of one image.
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

    # Strides, not a last dimension of `views`: a TPU would pad that one to 128.
    if block_size is None:
        # All views with all, though only equal ones are asked for: `uniformity` and the losses need this very product,
        # and the compiler makes it, and the gather before it, once.
        products = _products(rows, everything)
        found = [nearest(products[view::views, view::views], image) for view in range(views)]
    else:
        found = [
            _in_blocks(
                lambda rows, image, others=everything[view::views]: nearest(_products(rows, others), image),
                (rows[view::views], image),
                block_size,
            )
            for view in range(views)
        ]
    agrees = [one == other for one, other in itertools.combinations(found, 2)]
    return _global_mean(jnp.mean(jnp.stack(agrees).astype(rows.dtype)), axis_name)


def standard_deviation(z: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Standard deviation over the rows of each dimension of unit-length z, averaged over the dimensions.

    Args:
        z: [..., D].
        axis_name: mesh axis that splits the rows.

    Returns:
        A scalar from 0 (collapse) to 1 / sqrt(D) (spread evenly over the sphere). The variance is divided by
        the number of rows.
    """
    rows = l2_normalize(z).reshape(-1, z.shape[-1])
    mean = _global_mean(jnp.mean(rows, axis=0), axis_name)
    variance = _global_mean(jnp.mean(jnp.square(rows - mean), axis=0), axis_name)
    return jnp.mean(jnp.sqrt(variance))


def gram(z: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Second moments of unit-length z, Z^T Z / rows: what `effective_rank_from_gram` needs of a batch.

    Args:
        z: [..., D].
        axis_name: mesh axis that splits the rows.

    Returns:
        [D, D], symmetric, with trace 1.
    """
    rows = l2_normalize(z).reshape(-1, z.shape[-1])
    products = jnp.matmul(rows.T, rows, precision=jax.lax.Precision.HIGHEST)
    return _global_mean(products / rows.shape[0], axis_name)


def effective_rank_from_gram(gram: np.ndarray) -> float:
    """Effective rank of the rows behind a Gram matrix: its eigenvalues are their squared singular values.

    Squaring halves the digits: singular values below sqrt(D * eps) of the largest, with eps the precision of
    the matrix' type, are rounding and count as zero. In float32 with D = 128 that is 0.4 %. `effective_rank`
    has no such limit.

    Args:
        gram: [D, D], symmetric and positive semi-definite, as from `gram`.

    Returns:
        From 1 to D; 0 for a matrix of zeros.
    """
    gram = np.asarray(gram)
    eigenvalues = np.linalg.eigvalsh(gram.astype(np.float64))
    rounding = len(gram) * np.finfo(gram.dtype).eps * eigenvalues[-1]
    return _exponential_entropy(np.sqrt(np.where(eigenvalues > rounding, eigenvalues, 0.0)))


def effective_rank(features: np.ndarray) -> float:
    """Effective rank: exp of the entropy of the normalised singular values (RankMe, arXiv 2210.02885).

    The features are taken as they are, neither centred nor normalised. RankMe's 1e-7 inside the logarithm
    is left out: 0 log 0 is 0.

    Args:
        features: [rows, D], any real type.

    Returns:
        From 1 to min(rows, D); 0 where all features are zero.
    """
    return _exponential_entropy(np.linalg.svd(np.asarray(features, np.float64), compute_uv=False))


def _exponential_entropy(singular_values: np.ndarray) -> float:
    positive = singular_values[singular_values > 0]
    if positive.size == 0:
        return 0.0
    share = positive / positive.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def _products(rows: jax.Array, others: jax.Array) -> jax.Array:
    return jnp.matmul(rows, others.T, precision=jax.lax.Precision.HIGHEST)


def _in_blocks(function: Callable[..., jax.Array], rows: tuple[jax.Array, ...], block_size: int | None) -> jax.Array:
    """A function of rows [b, ...] that gives a value for each, of all rows, so many at a time; None: all at once."""
    if block_size is None:
        return function(*rows)
    return jax.lax.map(lambda row: function(*(part[None] for part in row))[0], rows, batch_size=block_size)


def _global_rows(z: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Unit-length rows of z [R, D], those of the global batch [G, D], and the places [R] of the former in it."""
    rows = l2_normalize(z).reshape(-1, z.shape[-1])
    everything, first = rows, 0
    if axis_name is not None:
        everything = jax.lax.all_gather(rows, axis_name, tiled=True)
        first = jax.lax.axis_index(axis_name) * rows.shape[0]
    return rows, everything, first + jnp.arange(rows.shape[0], dtype=jnp.int32)


def _global_mean(value: jax.Array, axis_name: str | None) -> jax.Array:
    return value if axis_name is None else jax.lax.pmean(value, axis_name)
