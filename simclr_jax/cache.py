"""Directories outside of work directories that are kept between runs.

They hold compiled programs, and the TPU compiler of `simclr plan`.
"""

import hashlib
import os
import pathlib
import platform


def directory() -> pathlib.Path | None:
    """Returns $XDG_CACHE_HOME/simclr_jax, or ~/.cache/simclr_jax if the variable is not set.

    None means that the user has no home directory, for example in a container with an unknown user number.
    """
    base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return None if base.startswith('~') else pathlib.Path(base) / 'simclr_jax'


def programs() -> pathlib.Path | None:
    """Returns the directory of compiled programs for processors like this one. None if there is no place for it.

    Other processors have other directories, because XLA compiles for the instruction set of the processor.
    """
    base = directory()
    return base and base / f'programs-{hashlib.sha256(_processor().encode()).hexdigest()[:8]}'


def _processor() -> str:
    """The architecture of the processor, and on Linux also its additional instruction sets."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(('flags', 'Features'))), '')
    return f'{platform.machine()} {flags}'
