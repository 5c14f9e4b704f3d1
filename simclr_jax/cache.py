"""What is kept between runs outside of work directories: compiled programs, and the TPU compiler of `simclr plan`."""

import hashlib
import os
import pathlib
import platform


def directory() -> pathlib.Path:
    """$XDG_CACHE_HOME/simclr_jax, or ~/.cache/simclr_jax."""
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    return pathlib.Path(base) / 'simclr_jax'


def programs() -> pathlib.Path:
    """Of compiled programs, for processors like this one: XLA writes the instructions that it has into them."""
    return directory() / f'programs-{hashlib.sha256(_processor().encode()).hexdigest()[:8]}'


def _processor() -> str:
    """The architecture, and on Linux the instruction sets beyond it."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(('flags', 'Features'))), '')
    return f'{platform.machine()} {flags}'
