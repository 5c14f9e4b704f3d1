"""Directories outside of work directories that are kept between runs.

They hold compiled programs, and the TPU compiler of `simclr plan`.
"""

import hashlib
import os
import pathlib
import platform


def directory() -> pathlib.Path:
    """Returns $XDG_CACHE_HOME/simclr_jax, or ~/.cache/simclr_jax if the variable is not set."""
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    return pathlib.Path(base) / 'simclr_jax'


def programs() -> pathlib.Path:
    """Returns the directory of compiled programs for processors like this one.

    Other processors have other directories, because XLA compiles for the instruction set of the processor.
    """
    return directory() / f'programs-{hashlib.sha256(_processor().encode()).hexdigest()[:8]}'


def _processor() -> str:
    """The architecture of the processor, and on Linux also its additional instruction sets."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(('flags', 'Features'))), '')
    return f'{platform.machine()} {flags}'
