"""Features of images: the types of their arrays, and files of earlier versions."""

import dataclasses
import errno
import hashlib
import os
import types

import jax
import numpy as np
import pytest
from etils import epath

from simclr_jax import sharding
from simclr_jax.data.arrays import make_fake
from simclr_jax.data.spec import Encoded
from simclr_jax.evaluation import features as features_module
from simclr_jax.evaluation.extractor import FeatureExtractor
from simclr_jax.evaluation.features import (
    Features,
    digest_of,
    features_of,
    keep_features,
    read_features,
    write_features,
)
from support.image_files import encode

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


def damaged_copy(directory, name):
    """A file of features of EXAMPLES, damaged in a way that happens, or by hand."""
    path = directory / f'{name}.npz'
    features = Features(np.ones((7, 3), np.float32), EXAMPLES.labels, np.arange(7, dtype=np.int32))
    write_features(epath.Path(path), features, EXAMPLES)
    content = bytearray(path.read_bytes())
    entry = content.find(b'PK\x01\x02')
    with np.load(path) as arrays:
        arrays = dict(arrays)
    changed = {
        'short': {'features': arrays['features'][:-1]},
        'short throughout': {key: arrays[key][:-1] for key in ('features', 'labels', 'index')},
        'flat': {'features': arrays['features'][:, 0]},
        'text': {'features': arrays['features'].astype(str)},
        'other labels': {'labels': arrays['labels'][::-1].copy() + 1},
        'index outside': {'index': arrays['index'] + 7},
        'index twice': {'index': arrays['index'] // 2},
        'index of text': {'index': np.array(['a'] * 7)},
    }
    if name in changed:
        np.savez(path, **arrays | changed[name])
        return path
    if name == 'one array':
        np.save(path.with_suffix('.npy'), arrays['features'])
        return path.with_suffix('.npy').rename(path)
    if name == 'directory':
        path.unlink()
        path.mkdir()
        return path
    if name == 'encrypted':
        content[entry + 8] |= 1
    elif name == 'unknown method':
        content[entry + 10] = 99
    elif name == 'wrong length':
        content = content.replace(b'(7, 3)', b'(9, 3)')
    elif name == 'bit':
        content[content.find(b'NUMPY') + 130] ^= 1
    path.write_bytes({'cut': content[:-300], 'empty': b'', 'no zip': b'hello'}.get(name, content))
    return path


@pytest.mark.parametrize(
    'name',
    ['encrypted', 'unknown method', 'wrong length', 'bit', 'cut', 'empty', 'no zip', 'one array', 'directory', 'short']
    + ['short throughout', 'flat', 'text', 'other labels', 'index outside', 'index twice', 'index of text'],
)
def test_damaged_features_are_computed_again_with_one_line(tmp_path, name):
    said = []
    path = epath.Path(damaged_copy(tmp_path, name))
    assert read_features(path, EXAMPLES, said.append) is None
    assert said == [f'{path} is damaged; its features are computed again.']


def test_features_of_another_decoder_are_computed_again(tmp_path, monkeypatch):
    """Earlier versions decoded JPEG with TensorFlow, whose pixels differ by up to 4 units."""
    files = [encode(np.full((4, 4, 3), 90 + number, np.uint8)) for number in range(7)]
    examples = dataclasses.replace(EXAMPLES, content=Encoded(files))
    path = epath.Path(tmp_path / 'features.npz')
    write_features(path, Features(np.ones((7, 3), np.float32), EXAMPLES.labels, np.arange(7, dtype=np.int32)), examples)
    assert read_features(path, examples, pytest.fail) is not None
    assert read_features(path, dataclasses.replace(examples, max_pixels=9), pytest.fail) is None
    monkeypatch.setattr(features_module.PIL, '__version__', '1.0')
    assert read_features(path, examples, pytest.fail) is None
    # What earlier versions wrote.
    earlier = hashlib.blake2b(f'{examples.name} {examples.size}'.encode(), digest_size=16)
    for file in files:
        earlier.update(file)
    earlier.update(EXAMPLES.labels.tobytes())
    assert digest_of(examples) != earlier.hexdigest()


@pytest.mark.parametrize('place', ['features', 'features/encoder', 'features/encoder/x.npz'])
def test_what_stands_in_the_place_of_the_cache_is_set_aside(found, tmp_path, place):
    path, said = epath.Path(tmp_path / 'features' / 'encoder' / 'x.npz'), []
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    if place.endswith('.npz'):
        (tmp_path / place).mkdir()
    else:
        (tmp_path / place).write_text('mine')
    assert keep_features(path, found, EXAMPLES, said.append)
    np.testing.assert_array_equal(read_features(path, EXAMPLES).values, found.values)
    assert (tmp_path / f'{place}.damaged').exists()
    assert len(said) == 1


@pytest.mark.parametrize('number', [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_features_that_cannot_be_written_stay_in_memory(tmp_path, monkeypatch, number):
    """Each label budget asks for the same features."""
    encoded_images, said = [], []

    def full(file, **arrays):
        file.write(b'half')
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(np, 'savez', full)
    mesh = sharding.make_mesh(jax.devices()[:1])
    config = types.SimpleNamespace(data=types.SimpleNamespace(max_unreadable=0.0))
    extractor = FeatureExtractor(
        'pixels', None, config, 8, 1.0, 4, mesh, 'x', epath.Path(tmp_path / 'f/x'), said.append
    )
    encode = extractor.function('h')
    monkeypatch.setattr(FeatureExtractor, 'function', lambda *_: encoded_images.append(1) or encode)
    first, second = extractor.features(EXAMPLES), extractor.features(EXAMPLES)
    assert first is second
    assert encoded_images == [1]
    _, line = said
    assert line.endswith(f'.npz cannot be written ({os.strerror(number)}); these features are not kept.')
    assert [path for path in tmp_path.rglob('*') if path.is_file()] == []
