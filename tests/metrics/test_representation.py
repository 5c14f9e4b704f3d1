"""The measures without labels: definitions in float64, known answers, and several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from simclr_jax.metrics import representation

MEASURES = {
    'alignment': representation.alignment,
    'uniformity': representation.uniformity,
    'neighbour_agreement': representation.neighbour_agreement,
    'standard_deviation': representation.standard_deviation,
    'gram': representation.gram,
}


@pytest.fixture
def z():
    return np.random.default_rng(0).standard_normal((16, 2, 6)).astype(np.float32)


def unit_rows(z):
    z = z.astype(np.float64)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


@pytest.mark.parametrize('views', [2, 3])
def test_alignment_is_the_mean_squared_distance_of_positive_pairs(views):
    z = np.random.default_rng(0).standard_normal((5, views, 4)).astype(np.float32)
    unit = unit_rows(z)
    pairs = [(v, w) for v in range(views) for w in range(views) if v != w]
    expected = np.mean([np.sum((unit[:, v] - unit[:, w]) ** 2, axis=-1) for v, w in pairs])
    np.testing.assert_allclose(representation.alignment(z), expected, rtol=1e-6)


def test_uniformity_is_the_log_mean_potential_of_different_rows(z):
    rows = unit_rows(z).reshape(-1, 6)
    distances = np.sum((rows[:, None] - rows) ** 2, axis=-1)
    different = ~np.eye(len(rows), dtype=bool)
    # Float32 products of unit rows are good to 1e-7, the potential and its logarithm to a few times that.
    np.testing.assert_allclose(
        representation.uniformity(z), np.log(np.exp(-2 * distances[different]).mean()), rtol=1e-6
    )


@pytest.mark.parametrize('views', [2, 3])
def test_neighbour_agreement_is_the_share_of_images_with_the_same_nearest_image(views):
    generator = np.random.default_rng(0)
    z = generator.standard_normal((40, 1, 4)) + 0.2 * generator.standard_normal((40, views, 4))
    nearest = []
    for view in range(views):
        similarity = unit_rows(z)[:, view] @ unit_rows(z)[:, view].T
        nearest.append([max((i for i in range(40) if i != j), key=lambda i: similarity[j, i]) for j in range(40)])
    pairs = [(v, w) for v in range(views) for w in range(v)]
    expected = np.mean([np.equal(nearest[v], nearest[w]) for v, w in pairs])
    assert 0.3 < expected < 0.9
    np.testing.assert_allclose(representation.neighbour_agreement(z.astype(np.float32)), expected, rtol=1e-6)


def test_neighbour_agreement_of_known_pairs():
    """Angles on a circle: images (0, 1) and (2, 3) are near; in the second view of the last case (0, 3), (1, 2)."""

    def on_circle(*degrees):
        return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=-1)

    first, turned, crossed = on_circle(0, 10, 90, 100), on_circle(200, 210, 290, 300), on_circle(0, 90, 100, 10)
    # An image's other view never counts as its neighbour, though here it is the nearest of all.
    for second, expected in ((first, 1), (turned, 1), (crossed, 0)):
        assert representation.neighbour_agreement(np.stack([first, second], axis=1).astype(np.float32)) == expected


@pytest.mark.parametrize('shape, message', [((1, 2, 4), 'one image'), ((4, 1, 4), 'at least two views')])
def test_neighbour_agreement_needs_two_images_and_two_views(shape, message):
    with pytest.raises(ValueError, match=message):
        representation.neighbour_agreement(jnp.ones(shape))


def test_standard_deviation_is_that_of_unit_rows(z):
    expected = unit_rows(z).reshape(-1, 6).std(axis=0).mean()
    np.testing.assert_allclose(representation.standard_deviation(z), expected, rtol=1e-6)


def test_gram_is_the_second_moment_of_unit_rows(z):
    rows = unit_rows(z).reshape(-1, 6)
    np.testing.assert_allclose(representation.gram(z), rows.T @ rows / len(rows), atol=1e-7)


@pytest.mark.parametrize('name', MEASURES)
def test_eight_devices_equal_one(name, z):
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    split = jax.shard_map(
        functools.partial(MEASURES[name], axis_name='data'),
        mesh=mesh,
        in_specs=PartitionSpec('data'),
        out_specs=PartitionSpec(),
    )
    # Only the order of float32 sums differs; entries of the Gram matrix are at most 1.
    np.testing.assert_allclose(jax.jit(split)(z), MEASURES[name](z), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('collapsed', [np.ones((8, 2, 5)), np.zeros((8, 2, 5))])
def test_collapse_to_a_point_or_to_zero_is_seen(collapsed):
    z = collapsed.astype(np.float32)
    # Float32 rounding of the unit vector's entries.
    np.testing.assert_allclose(representation.alignment(z), 0, atol=1e-6)
    np.testing.assert_allclose(representation.uniformity(z), 0, atol=1e-6)
    np.testing.assert_allclose(representation.standard_deviation(z), 0, atol=1e-6)


def test_one_hot_rows_have_known_measures():
    """Each axis of the space in both directions: zero mean, unit length, second moment 1 / D."""
    dimensions = 8
    z = np.concatenate([np.eye(dimensions), -np.eye(dimensions)]).astype(np.float32)
    np.testing.assert_allclose(representation.standard_deviation(z), 1 / np.sqrt(dimensions), rtol=1e-6)
    np.testing.assert_allclose(representation.gram(z), np.eye(dimensions) / dimensions, atol=1e-7)
    # Every row sees one opposite at squared distance 4, and the others at 2.
    others = 2 * dimensions - 2
    expected = np.log((np.exp(-8) + others * np.exp(-4)) / (others + 1))
    np.testing.assert_allclose(representation.uniformity(z), expected, rtol=1e-6)


def test_opposite_views_are_as_far_apart_as_can_be():
    z = np.stack([np.eye(3), -np.eye(3)], axis=1).astype(np.float32)
    np.testing.assert_allclose(representation.alignment(z), 4, rtol=1e-6)


def test_measures_are_those_of_directions_in_any_precision(z):
    lengths = np.random.default_rng(1).uniform(0.1, 10, (16, 2, 1)).astype(np.float32)
    for measure in MEASURES.values():
        np.testing.assert_allclose(measure(z * lengths), measure(z), rtol=1e-5, atol=1e-6)
        assert measure(jnp.asarray(z, jnp.bfloat16)).dtype == jnp.float32


def test_uniformity_of_one_row_is_refused():
    with pytest.raises(ValueError, match='at least two'):
        representation.uniformity(jnp.ones((1, 4)))


def test_effective_rank_of_known_spectra():
    generator = np.random.default_rng(0)
    left = np.linalg.qr(generator.standard_normal((20, 6)))[0]
    right = np.linalg.qr(generator.standard_normal((6, 6)))[0]
    np.testing.assert_allclose(representation.effective_rank(left), 6)
    np.testing.assert_allclose(representation.effective_rank(np.eye(5)), 5)
    np.testing.assert_allclose(representation.effective_rank(np.ones((20, 6))), 1)
    assert representation.effective_rank(np.zeros((20, 6))) == 0
    spectrum = np.array([4, 2, 1, 1, 0, 0])
    # Entropy of (1/2, 1/4, 1/8, 1/8): 7/4 bits.
    np.testing.assert_allclose(representation.effective_rank(left * spectrum @ right), 2**1.75)


def test_effective_rank_from_the_gram_matrix_is_that_of_the_rows(z):
    rows = unit_rows(z).reshape(-1, 6)
    expected = representation.effective_rank(rows)
    np.testing.assert_allclose(representation.effective_rank_from_gram(rows.T @ rows), expected, rtol=1e-12)
    np.testing.assert_allclose(representation.effective_rank_from_gram(representation.gram(z)), expected, rtol=1e-6)


def test_rounding_of_a_collapsed_gram_matrix_is_no_rank():
    """One direction in 128 dimensions: the roots of float32 noise are not counted as further ones."""
    generator = np.random.default_rng(0)
    z = generator.uniform(0.5, 2, (64, 1)) * generator.standard_normal(128)
    gram = representation.gram(z.astype(np.float32))
    np.testing.assert_allclose(representation.effective_rank_from_gram(gram), 1, rtol=1e-6)
    assert representation.effective_rank_from_gram(np.zeros((4, 4))) == 0


@pytest.mark.parametrize('name', ['uniformity', 'neighbour_agreement'])
@pytest.mark.parametrize('block_size', [1, 5, 64])
def test_in_blocks_they_are_the_same(name, block_size, z):
    measure = getattr(representation, name)
    z = jnp.asarray(z.reshape(-1, 2, z.shape[-1]), jnp.float32)
    np.testing.assert_allclose(measure(z, block_size=block_size), measure(z), rtol=1e-6)


@pytest.mark.parametrize('name', ['uniformity', 'neighbour_agreement'])
def test_in_blocks_they_take_less_memory(name):
    z = jax.ShapeDtypeStruct((1024, 2, 16), jnp.float32)
    measure = getattr(representation, name)
    whole, blocks = (
        jax.jit(functools.partial(measure, block_size=size)).lower(z).compile().memory_analysis().temp_size_in_bytes
        for size in (None, 32)
    )
    assert blocks < 0.1 * whole
