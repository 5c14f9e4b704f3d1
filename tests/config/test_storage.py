"""Google's storage: each mistake is one message at once, and a lock there has one owner at a time."""

import importlib.util
import json
import threading
import time

import pytest

from simclr_jax.config import ConfigError, storage
from simclr_jax.config.storage import check_reachable, versions
from simclr_jax.training import lock
from simclr_jax.training.checkpoint_errors import is_damage
from simclr_jax.training.lock import Lock
from support.storage import Storage


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    with Storage(tmp_path_factory.mktemp('storage'), 'runs', 'locked', 'open') as server:
        server.locked.add('locked')
        server.public.add('open')
        yield server


@pytest.fixture
def forget():
    """Each test asks the storage again, as a new process does."""
    storage._check_bucket.cache_clear()
    storage.client.cache_clear()
    yield
    storage._check_bucket.cache_clear()
    storage.client.cache_clear()


@pytest.fixture
def account(server, forget, monkeypatch):
    """A process that may use the storage."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def stranger(server, forget, monkeypatch, tmp_path):
    """A process without credentials."""
    for name, value in (server.as_proxy() | {'CLOUDSDK_CONFIG': str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    for name in ('STORAGE_EMULATOR_HOST', 'GOOGLE_APPLICATION_CREDENTIALS', 'GOOGLE_CLOUD_PROJECT'):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures('account')
class TestAnAccount:
    def test_what_it_may_use_passes(self):
        check_reachable('gs://runs/a/b', holds_runs=True)
        check_reachable('gs://runs/a/b')
        check_reachable('/tmp/gs:/locked', holds_runs=True)

    @pytest.mark.parametrize(
        'path, message',
        [
            ('gs://missing/run', r'gs://missing does not exist; make it with `gcloud storage buckets create'),
            ('gs://locked/run', r'gs://locked may not be used by this account; give it storage\.buckets\.get and'),
            ('gs:///run', r'gs:// names no bucket; write gs://BUCKET/PATH'),
        ],
    )
    def test_a_mistake_is_named_with_its_cure(self, path, message):
        with pytest.raises(ConfigError, match=message):
            check_reachable(path, holds_runs=True)

    def test_data_need_fewer_rights(self):
        with pytest.raises(ConfigError, match='give it Storage Object Viewer on the bucket'):
            check_reachable('gs://locked/photos')


@pytest.mark.usefixtures('stranger')
class TestWithoutCredentials:
    def test_the_cure_comes_at_once(self):
        start = time.monotonic()
        with pytest.raises(ConfigError, match=r'gs://runs needs credentials.*gcloud auth application-default login'):
            check_reachable('gs://runs/run', holds_runs=True)
        with pytest.raises(ConfigError, match=r'gs://runs needs credentials.*GOOGLE_APPLICATION_CREDENTIALS'):
            check_reachable('gs://runs/photos')
        assert time.monotonic() - start < 10

    def test_public_data_are_read(self):
        check_reachable('gs://open/photos')


@pytest.mark.usefixtures('forget')
def test_a_storage_that_does_not_answer(monkeypatch):
    monkeypatch.setenv('STORAGE_EMULATOR_HOST', 'http://127.0.0.1:9')
    with pytest.raises(ConfigError, match=r'gs://runs cannot be reached \(ConnectionError: .*check the network'):
        check_reachable('gs://runs/run', holds_runs=True)


@pytest.mark.usefixtures('forget')
@pytest.mark.parametrize('package', storage.PACKAGES)
def test_a_missing_package_is_named(package, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == package else found(name))
    with pytest.raises(ConfigError, match=rf"needs the package {package}: pip install 'simclr_jax\[gcs\]'"):
        check_reachable('gs://runs/run')


@pytest.mark.usefixtures('account')
def test_versions_change_with_the_content_and_with_nothing_else(server):
    paths = ['gs://runs/photos/b.png', 'gs://runs/photos/a/c.png']
    for name in ('photos/b.png', 'photos/a/c.png', 'photos2/d.png'):
        server.put('runs', name, b'content')
    first = versions(paths)
    assert versions(paths) == first
    server.put('runs', 'photos/b.png', b'another')
    second = versions(paths)
    assert second[0] != first[0]
    assert second[1] == first[1]
    with pytest.raises(FileNotFoundError, match=r'gs://runs/photos/none\.png'):
        versions([*paths, 'gs://runs/photos/none.png'])


@pytest.mark.usefixtures('account')
class TestLock:
    @pytest.fixture(autouse=True)
    def patience(self, monkeypatch):
        for name, seconds in {'BEAT': 0.2, 'STALE': 1.5}.items():
            monkeypatch.setattr(lock, name, seconds)

    def test_of_many_claims_at_the_same_moment_one_is_good(self, server):
        inside, most = [], []
        barrier = threading.Barrier(3)

        def enter():
            barrier.wait()
            with Lock('gs://runs/busy', 'result', wait=60.0, say=lambda text: None):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.1)
                inside.pop()

        threads = [threading.Thread(target=enter) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == [1] * 3
        assert 'busy/result.lock' not in server.objects['runs']

    def test_an_owner_on_another_machine_is_told_while_it_lives(self, server):
        owner = {'host': 'elsewhere', 'space': '', 'pid': 7, 'started': 1.0, 'since': 'then', 'token': 'other'}
        is_over = threading.Event()

        def live():
            while not is_over.wait(0.1):
                server.put('runs', 'run/train.lock', json.dumps(owner | {'beat': time.time()}).encode())

        server.put('runs', 'run/train.lock', json.dumps(owner | {'beat': time.time()}).encode())
        thread = threading.Thread(target=live)
        thread.start()
        with pytest.raises(ConfigError, match=r'gs://runs/run is in use by another process .process 7 on elsewhere'):
            Lock('gs://runs/run', 'train', say=lambda text: None).__enter__()
        is_over.set()
        thread.join()
        with Lock('gs://runs/run', 'train', say=lambda text: None) as held:
            assert json.loads(server.objects['runs']['run/train.lock'])['token'] != 'other'
            # A renewal never overwrites a new owner.
            server.put('runs', 'run/train.lock', json.dumps(owner | {'beat': time.time()}).encode())
            time.sleep(0.5)
            with pytest.raises(ConfigError, match='process 7 on elsewhere'):
                held.check()
        assert json.loads(server.objects['runs']['run/train.lock'])['token'] == 'other'


def test_a_checkpoint_that_the_storage_refuses_is_not_damaged():
    exceptions = pytest.importorskip('google.api_core.exceptions')
    assert not is_damage(exceptions.Forbidden('no'))
    assert is_damage(FileNotFoundError('gs://runs/run/checkpoints/2/model/_METADATA'))
