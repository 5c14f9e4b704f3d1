"""What makes a configuration: its defaults, what may stand in each field, and how a file of it is read."""

import dataclasses
import difflib
import importlib.util
import json
import math
import numbers
import pathlib
import re
import traceback
from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from simclr_jax.config.overrides import ConfigError, apply_overrides, flatten, unknown_field

# Rules for RANGES: what to say, and whether a value of the right type holds to it.
Rule = tuple[str, Callable]
COUNT = ('an integer >= 1', lambda value: value >= 1)
NATURAL = ('an integer >= 0', lambda value: value >= 0)
POSITIVE = ('a finite number > 0', lambda value: 0 < value < math.inf)
AMOUNT = ('a finite number >= 0', lambda value: 0 <= value < math.inf)
SHARE = ('a number in [0, 1]', lambda value: 0 <= value <= 1)
BELOW_ONE = ('a number in [0, 1)', lambda value: 0 <= value < 1)


@dataclasses.dataclass(frozen=True)
class Schema:
    """One kind of configuration.

    Attributes:
        base: makes it, every field with its default; the types of the defaults are the fields' types.
        ranges: field -> rule, for fields that are numbers or several of them.
        choices: field -> the values that it may have.
        check_together: config -> messages on what concerns several fields; called where each alone is right.
    """

    base: Callable[[], ConfigDict]
    ranges: dict[str, Rule]
    choices: dict[str, tuple]
    check_together: Callable[[ConfigDict], list[str]]


def load(schema: Schema, spec: str, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Reads a configuration file, applies overrides and validates the result.

    Args:
        schema: of the configuration.
        spec: path of the file, then ':' and the argument of its get_config, if any: 'configs/cifar10.py:r50'.
        overrides: pairs (dotted field, text), as ('optimizer.learning_rate', '0.5').

    Returns:
        The locked configuration.

    Raises:
        ConfigError: with every problem of the file, the overrides and the values at once.
    """
    path, _, argument = spec.partition(':')
    if not pathlib.Path(path).is_file():
        raise ConfigError([f'--config={spec}: there is no file {path}; examples are in configs/'])
    return override(schema, _run_file(spec, path, argument), overrides)


def override(schema: Schema, config: ConfigDict, overrides: Iterable[tuple[str, str]]) -> ConfigDict:
    """Sets fields of a configuration from texts, and validates it; see `load`."""
    problems = apply_overrides(config, overrides)
    problems += check(schema, config)
    if problems:
        raise ConfigError(problems)
    return config


def _run_file(spec: str, path: str, argument: str) -> ConfigDict:
    """What the file's get_config returns; a mistake in the file is told with its line."""
    module_spec = importlib.util.spec_from_file_location('simclr_config', path)
    if module_spec is None:
        raise ConfigError([f'--config={spec}: a configuration is a Python file, *.py'])
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, 'get_config'):
            raise ConfigError([f'--config={spec}: the file defines no get_config(arg)'])
        config = module.get_config(argument)
    except ConfigError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == module_spec.origin]
        where = f', line {lines[-1]}' if lines else ''
        # A locked ConfigDict answers an unknown field with its whole contents.
        message = re.sub(r'( Other fields present: "\{.*\}")?(\\n|\n)', ' ', str(error))
        raise ConfigError([f'--config={spec}{where}: {type(error).__name__}: {message}']) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError([f'--config={spec}: get_config returned {config!r:.40}; it must return a base_config()'])
    return config.lock()


def check(schema: Schema, config: ConfigDict) -> list[str]:
    """Everything that is wrong with the values: one message a problem."""
    problems = _check_types(schema, config)
    if problems:
        return problems
    fields, defaults = flatten(config), flatten(schema.base())
    problems += [
        f'{name}={fields[name]!r}: must be {rule}, for example {defaults[name]!r}'
        for name, (rule, holds) in schema.ranges.items()
        if not holds(fields[name])
    ]
    for name, choices in schema.choices.items():
        if fields[name] not in choices:
            nearest = difflib.get_close_matches(str(fields[name]), map(str, choices), n=1)
            hint = f'; did you mean {nearest[0]}?' if nearest else ''
            problems.append(f'{name}={fields[name]!r}: must be one of {", ".join(map(str, choices))}{hint}')
    return problems + schema.check_together(config)


def _check_types(schema: Schema, config: ConfigDict) -> list[str]:
    """A configuration file may have put anything anywhere."""
    problems = []
    defaults, fields = flatten(schema.base()), flatten(config)
    for name in fields:
        if name not in defaults:
            problems.append(f'{name}: {unknown_field(name, defaults)}')
    for name, default in defaults.items():
        if name not in fields:
            problems.append(f'{name} is missing; start from base_config()')
            continue
        value = fields[name]
        kind = numbers.Real if isinstance(default, float) else type(default)
        is_wrong_bool = isinstance(value, bool) and not isinstance(default, bool)
        if not isinstance(value, kind) or is_wrong_bool:
            problems.append(f'{name}={value!r}: must be of type {type(default).__name__}, like {default!r}')
    return problems


def to_json(config: ConfigDict) -> str:
    """The text of a configuration's file."""
    return json.dumps(config.to_dict(), indent=2) + '\n'


def from_json(schema: Schema, text: str) -> ConfigDict:
    """The configuration that `to_json` wrote; fields that are newer than the text have their defaults.

    Raises:
        ConfigError: no object, or fields of another version of the program.
    """

    def with_tuples(value):
        if isinstance(value, dict):
            return {key: with_tuples(item) for key, item in value.items()}
        return tuple(value) if isinstance(value, list) else value

    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ConfigError([f'{text.strip():.40} is no object with the fields of a configuration'])
    config = ConfigDict(_with_defaults(with_tuples(fields), schema.base().to_dict())).lock()
    problems = check(schema, config)
    if problems:
        raise ConfigError(problems)
    return config


def _with_defaults(fields: dict, defaults: dict) -> dict:
    found = defaults | fields
    for name, default in defaults.items():
        if isinstance(default, dict) and isinstance(found[name], dict):
            found[name] = _with_defaults(found[name], default)
    return found
