"""Packages that only some conversions need."""

import contextlib
from collections.abc import Iterator

from simclr_jax.config import ConfigError

# Package -> what installs it.
INSTALLED_BY = {
    **dict.fromkeys(('safetensors', 'onnx', 'flatbuffers'), "'simclr_jax[export]'"),
    'torch': 'torch',
}


@contextlib.contextmanager
def needs_extra(package: str, what: str = '') -> Iterator[None]:
    """Turns a missing package into a mistake of the user.

    Args:
        package: Package that is imported inside of the block.
        what: Beginning of the message. '': 'this needs PACKAGE'.

    Raises:
        ConfigError: The package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or '').partition('.')[0] != package:
            raise
        reason = what or f'this needs {package}'
        raise ConfigError([f'{reason}, and {package} is not installed: pip install {INSTALLED_BY[package]}']) from error
