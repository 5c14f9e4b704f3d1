"""Installs the TPU compiler (libtpu) on a machine without TPU, for the processes that compile.

libtpu lies in its own directory outside of the Python environment. Inside of the environment JAX would try to start a
TPU with it.
"""

import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable

from simclr_jax import cache
from simclr_jax.config import ConfigError

# JAX itself runs on the CPU. libtpu must not ask for the metadata of a TPU machine, and several processes may load it.
# The cache is off, because it cannot read programs back that were compiled for absent devices.
VARIABLES = {
    'JAX_PLATFORMS': 'cpu',
    'JAX_ENABLE_COMPILATION_CACHE': 'false',
    'TPU_SKIP_MDS_QUERY': '1',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


def requirement() -> str:
    """Returns the libtpu that the installed JAX requires, for example 'libtpu==0.0.42.*'.

    Raises:
        ConfigError: The installed JAX names no libtpu.
    """
    for line in importlib.metadata.requires('jax') or ():
        if found := re.match(r"(libtpu\S*)\s*;.*extra == ['\"]tpu['\"]", line):
            return found.group(1)
    raise ConfigError([f'jax {importlib.metadata.version("jax")} names no libtpu; install a released version of jax'])


def install(say: Callable[[str], None]) -> pathlib.Path:
    """Finds the directory that holds libtpu, and installs libtpu by pip if it is missing.

    Args:
        say: Prints a message before a download.

    Returns:
        The directory, for the Python path of a process that compiles.

    Raises:
        ConfigError: pip cannot install libtpu, or the cache directory cannot be written.
    """
    installed = importlib.util.find_spec('libtpu')
    if installed and installed.origin:
        return pathlib.Path(installed.origin).parent.parent
    wanted = requirement()
    base = cache.directory()
    if base is None:
        raise ConfigError([f'there is no home directory to install {wanted} in; set XDG_CACHE_HOME to a directory'])
    directory = base / re.sub(r'[^\w.]+', '-', wanted).strip('-.')
    if directory.is_dir():
        return directory
    say(f'Installing {wanted}, the TPU compiler, in {directory} (once, about 700 MB) ...')
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial = tempfile.mkdtemp(prefix='libtpu-', dir=directory.parent)
    except OSError as error:
        raise ConfigError(
            [f'{directory.parent} cannot be written ({error.strerror}); set XDG_CACHE_HOME to a writable directory']
        ) from error
    try:
        _pip(wanted, partial, directory)
        # Another process may have installed it meanwhile.
        if not directory.is_dir():
            os.replace(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def _pip(wanted: str, target: str, directory: pathlib.Path) -> None:
    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--no-deps']
    done = subprocess.run([*command, '--target', target, wanted], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    errors = [line for line in done.stderr.splitlines() if line.strip()] or [f'exit code {done.returncode}']
    raise ConfigError(
        [
            f'{wanted}, the TPU compiler, cannot be installed by pip: {errors[-1].strip()}',
            f"install it where there is a network: python -m pip install --no-deps --target '{directory}' '{wanted}'",
        ]
    )


def environment(directory: pathlib.Path) -> dict[str, str]:
    """Environment variables of a process that compiles for TPUs.

    Args:
        directory: Directory that holds libtpu.
    """
    path = os.pathsep.join(filter(None, [str(directory), os.environ.get('PYTHONPATH')]))
    return {**os.environ, **VARIABLES, 'PYTHONPATH': path}
