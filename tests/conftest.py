"""What every test shares: eight virtual CPU devices, strict dtypes, and the reference's numbers."""

import atexit
import importlib.metadata
import os
import shutil
import signal
import tempfile

# A shell's background jobs ignore SIGINT, and those of nohup SIGHUP, which the tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

os.environ['JAX_PLATFORMS'] = 'cpu'
# Tests compile many programs and run each of them a few times. With these settings the compiler optimises less, which
# saves more time than the programs lose.
COMPILE_SOON = [
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
    '--xla_cpu_parallel_codegen_split_count=1',
]
# Later versions do not know this setting, and refuse to start with an unknown one.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
    COMPILE_SOON.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join(
    [os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=8', *COMPILE_SOON]
)
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
# All workers, and the processes that tests start, share the programs that one of them compiled in this session.
if 'PYTEST_XDIST_WORKER' not in os.environ:
    COMPILED = tempfile.mkdtemp(prefix='simclr-compiled-')
    atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = COMPILED
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

import jax
import numpy as np
import pytest

from support.oracles import load_oracle

jax.config.update('jax_numpy_dtype_promotion', 'strict')


# Folders whose files take longest. They come first, so that all workers end at about the same time.
LONGEST = ('whole', 'training', 'evaluation', 'interop', 'tasks', 'models')


# Compiles what files of the same folder use as well. It comes first, so that they find it in the cache.
COMPILES_FOR_OTHERS = 'test_run.py'


def pytest_collection_modifyitems(items):
    """Orders the tests by their folders."""
    items.sort(key=lambda item: (item.path.parent.name not in LONGEST, item.path.name != COMPILES_FOR_OTHERS))


@pytest.fixture(scope='session')
def oracle():
    """oracle('nt_xent') -> Oracle, see support/oracles.py."""
    return load_oracle


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
