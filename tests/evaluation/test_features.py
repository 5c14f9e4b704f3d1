"""Features of images: the types of their arrays, and files of earlier versions."""

import jax
import numpy as np
import pytest
from etils import epath

from simclr_jax import sharding
from simclr_jax.data.arrays import make_fake
from simclr_jax.evaluation.features import digest_of, features_of, read_features, write_features

EXAMPLES = make_fake('test', size=7, image_size=8)


@pytest.fixture(scope='module')
def found():
    mesh = sharding.make_mesh(jax.devices()[:2])
    encode = jax.jit(lambda images: images.mean((1, 2)))
    return features_of(encode, EXAMPLES, image_size=8, batch_size=4, mesh=mesh)


def test_an_index_is_int32_from_the_images_to_the_file(found, tmp_path):
    path = epath.Path(tmp_path / 'features.npz')
    write_features(path, found, EXAMPLES)
    for features in (found, read_features(path, EXAMPLES)):
        assert (features.values.dtype, features.labels.dtype, features.index.dtype) == (np.float32, np.int32, np.int32)
        np.testing.assert_array_equal(features.index, np.arange(7))
        np.testing.assert_array_equal(features.values, found.values)


def test_files_with_an_index_of_int64_are_readable(found, tmp_path):
    """Earlier versions wrote them."""
    path = tmp_path / 'features.npz'
    index, digest = found.index.astype(np.int64), digest_of(EXAMPLES)
    np.savez(path, features=found.values, labels=found.labels, index=index, ids=EXAMPLES.ids(), digest=digest)
    features = read_features(epath.Path(path), EXAMPLES)
    assert features.index.dtype == np.int32
    np.testing.assert_array_equal(features.index, index)
