"""Google's storage, gs://: whether a bucket can be used, and the errors of the libraries that use it."""

import errno
import functools
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any

from simclr_jax.config.paths import ConfigError

GCS = 'gs://'
# Orbax and etils import these for every path of Google's storage. The extra `gcs` installs them.
PACKAGES = ('gcsfs', 'google.cloud.storage', 'google.cloud.storage_control_v2')
# Seconds to wait for the first answer of the storage.
PATIENCE = 20
LOG_IN = (
    'log in with `gcloud auth application-default login`, or name the key file of a service account in '
    'GOOGLE_APPLICATION_CREDENTIALS'
)


def check_reachable(path: str | os.PathLike[str], *, holds_runs: bool = False) -> None:
    """Asks the storage of a path once, so that a mistake is found at once and not after minutes of retries.

    Args:
        path: Path of a file or directory. Only gs:// is asked.
        holds_runs: Whether a work directory lies there. Orbax reads the description of its bucket, which needs more
            rights than the objects in it.

    Raises:
        ConfigError: A package or the credentials are missing, the bucket does not exist or is closed, or the storage
            does not answer.
    """
    text = os.fspath(path)
    if text.startswith(GCS):
        _check_bucket(text.removeprefix(GCS).partition('/')[0], holds_runs)


@functools.cache
def _check_bucket(bucket: str, holds_runs: bool) -> None:
    missing = next((package for package in PACKAGES if not _is_installed(package)), None)
    if missing:
        raise ConfigError([f"{GCS}{bucket} needs the package {missing}: pip install 'simclr_jax[gcs]'"])
    if not bucket:
        raise ConfigError([f'{GCS} names no bucket; write gs://BUCKET/PATH'])
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError

    try:
        storage = client(needs_credentials=holds_runs)
        if holds_runs:
            storage.get_bucket(bucket, timeout=PATIENCE, retry=None)
        else:
            next(iter(storage.list_blobs(bucket, max_results=1, timeout=PATIENCE, retry=None)), None)
    except GoogleAuthError as error:
        raise ConfigError(
            [f'{GCS}{bucket} needs credentials of Google Cloud, and there are none that it accepts '
             f'({first_line(error)}); {LOG_IN}']
        ) from error  # fmt: skip
    except GoogleAPICallError as error:
        raise ConfigError([f'{GCS}{bucket} {_refusal(int(error.code or 0), bucket, holds_runs)}']) from error
    except OSError as error:
        raise ConfigError(
            [f'{GCS}{bucket} cannot be reached ({type(error).__name__}: {first_line(error)}); check the network, the '
             'proxy and GOOGLE_CLOUD_PROJECT']
        ) from error  # fmt: skip


@functools.cache
def client(*, needs_credentials: bool) -> Any:
    """A client of Google's storage.

    Args:
        needs_credentials: Whether to refuse where there are none. Public buckets need none.

    Raises:
        GoogleAuthError: There are no credentials.
    """
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage

    try:
        return storage.Client()
    except DefaultCredentialsError:
        if needs_credentials:
            raise
        return storage.Client.create_anonymous_client()


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _refusal(status: int, bucket: str, holds_runs: bool) -> str:
    """What a status of HTTP means, with the cure."""
    if status == 404:
        return f'does not exist; make it with `gcloud storage buckets create {GCS}{bucket}`, or correct the name'
    if status == 401:
        return f'does not accept these credentials; {LOG_IN}'
    if status == 403:
        right = 'storage.buckets.get and the role Storage Object Admin' if holds_runs else 'Storage Object Viewer'
        return f'may not be used by this account; give it {right} on the bucket'
    return f'answers with HTTP status {status}; try again later'


def versions(paths: Sequence[str]) -> list[str]:
    """Texts that change with the content of files: their sizes and times, or generations in a storage.

    Args:
        paths: Files, all local or all in one bucket. Those of a bucket are asked for by the thousand.

    Raises:
        OSError: A file is missing, or cannot be reached.
    """
    if not paths or not paths[0].startswith(GCS):
        return [f'{status.st_size} {status.st_mtime_ns}' for status in map(os.stat, paths)]
    bucket, _, prefix = os.path.commonpath([path.removeprefix(GCS) for path in paths]).partition('/')
    blobs = client(needs_credentials=False).list_blobs(
        bucket, prefix=prefix, fields='items(name,size,generation),nextPageToken'
    )
    found = {f'{GCS}{bucket}/{blob.name}': f'{blob.size} {blob.generation}' for blob in blobs}
    missing = next((path for path in paths if path not in found), None)
    if missing:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), missing)
    return [found[path] for path in paths]


def storage_errors() -> tuple[type[Exception], ...]:
    """Classes of the errors of a storage besides OSError, of those libraries that are imported. For `except`."""
    names = {
        'tensorflow': 'errors.OpError',
        'gcsfs.retry': 'HttpError',
        'google.api_core.exceptions': 'GoogleAPIError',
        'google.auth.exceptions': 'GoogleAuthError',
        'aiohttp': 'ClientError',
    }
    return tuple(
        functools.reduce(getattr, name.split('.'), sys.modules[module])
        for module, name in names.items()
        if sys.modules.get(module)
    )


def first_line(error: BaseException) -> str:
    """The beginning of an error's text, as far as it fits in a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
