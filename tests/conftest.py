"""What every test shares: eight virtual CPU devices, strict dtypes, and where the reference's numbers lie."""

import atexit
import json
import os
import shutil
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
# Programs compiled once a session, for all workers and the processes that tests start.
if 'PYTEST_XDIST_WORKER' not in os.environ:
    COMPILED = tempfile.mkdtemp(prefix='simclr-compiled-')
    atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = COMPILED
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

import jax
import numpy as np
import pytest

from support.paths import SHARED

jax.config.update('jax_numpy_dtype_promotion', 'strict')


class Oracle:
    """One pair of fixture files: `oracle.info` is the json, `oracle[name]` an array of the npz."""

    def __init__(self, name):
        folder = SHARED / 'oracles'
        if not (folder / f'{name}.npz').exists() and not (folder / f'{name}.json').exists():
            pytest.skip(f'the reference numbers {name} are not at {folder}')
        info = folder / f'{name}.json'
        arrays = folder / f'{name}.npz'
        self.info = json.loads(info.read_text()) if info.exists() else None
        self.arrays = dict(np.load(arrays, allow_pickle=False)) if arrays.exists() else {}

    def __getitem__(self, name):
        return self.arrays[name]


@pytest.fixture(scope='session')
def oracle():
    """oracle('nt_xent') -> Oracle; read once a session."""
    cache = {}

    def load(name):
        if name not in cache:
            cache[name] = Oracle(name)
        return cache[name]

    return load


@pytest.fixture
def x64():
    """Runs a test in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope='session')
def photographs():
    """Two photographs of another shape than their views': uint8 [2, 224, 300, 3]."""
    load = pytest.importorskip('sklearn.datasets').load_sample_image
    return np.stack([load('flower.jpg')[100:324, 100:400], load('china.jpg')[100:324, 200:500]])
