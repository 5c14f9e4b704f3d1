"""Configuration files: Python files whose function `get_config(arg='')` returns a configuration."""

import importlib.resources
import importlib.util
import pathlib
import re
import traceback

from ml_collections import ConfigDict

from simclr_jax.config.fields import shown
from simclr_jax.config.paths import ConfigError, user_path


def run_file(spec: str) -> ConfigDict:
    """Runs a configuration file. It is Python code, and can do whatever its user can do.

    Args:
        spec: Path of the file, then ':' and the argument of its `get_config` if it needs one. A path such as
            'configs/digits.py' that does not exist here is looked up in the installed package.

    Returns:
        The locked configuration.

    Raises:
        ConfigError: There is no such file, or it gives no configuration. An error in it is named with its line.
    """
    path, argument = _find(spec)
    module_spec = importlib.util.spec_from_file_location('simclr_config', path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError([f'--config={spec}: a configuration must be a Python file, *.py'])
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, 'get_config'):
            raise ConfigError([f'--config={spec}: the file defines no get_config(arg); add it, as in configs/'])
        config = module.get_config(argument)
    except ConfigError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == module_spec.origin]
        where = f', line {lines[-1]}' if lines else ''
        # The error of a locked ConfigDict lists all its fields after an unknown one. Leave the list out.
        message = re.sub(r'( Other fields present: "\{.*\}")?(\\n|\n)', ' ', str(error))
        raise ConfigError([f'--config={spec}{where}: {type(error).__name__}: {message}']) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError([f'--config={spec}: get_config returned {shown(config)}; return a base_config()'])
    return config.lock()


def shipped() -> pathlib.Path:
    """The directory `configs` of this program: in a checkout beside the package, otherwise installed with it."""
    package = pathlib.Path(str(importlib.resources.files('simclr_jax')))
    places = (package / 'configs', package.parent / 'configs')
    return next((place for place in places if (place / 'digits.py').is_file()), places[0])


def _find(spec: str) -> tuple[pathlib.Path, str]:
    """The file that is meant, and the argument for it."""
    whole = pathlib.Path(user_path(spec))
    if whole.is_file():
        # A path may contain a colon itself.
        return whole, ''
    text, _, argument = spec.partition(':')
    path = pathlib.Path(user_path(text))
    if path.is_file():
        return path, argument
    place = shipped()
    if path.parts[:1] == ('configs',) and (place.parent / path).is_file():
        return place.parent / path, argument
    there = ', '.join(sorted(f'configs/{file.relative_to(place)}' for file in place.rglob('*.py')))
    raise ConfigError([f'--config={spec}: there is no file {text}; give your own, or one of {there or "none"}'])
