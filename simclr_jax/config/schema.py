"""Schemas of configurations: default values, rules for each field, and the reading of configuration files."""

import dataclasses
import difflib
import importlib.util
import json
import math
import numbers
import pathlib
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from simclr_jax.config.overrides import ConfigError, apply_overrides, flatten, unknown_field

# A rule for RANGES: its text in messages, and a function that accepts or rejects a value of the right type.
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
        base: Makes a configuration of defaults. The type of a default is the type of its field.
        ranges: Rule of each field that holds a number or several numbers.
        choices: Accepted values of each field that holds one of several names.
        check_together: Returns messages about fields that do not fit together. It sees only configurations in which
            every single field is valid.
        retired: Top-level fields of earlier versions that changed no result. A saved configuration may still hold them.
    """

    base: Callable[[], ConfigDict]
    ranges: dict[str, Rule]
    choices: dict[str, tuple]
    check_together: Callable[[ConfigDict], list[str]]
    retired: tuple[str, ...] = ()


def load(schema: Schema, spec: str, overrides: Iterable[tuple[str, str]] = ()) -> ConfigDict:
    """Reads a configuration file, applies overrides and validates the result.

    Args:
        schema: Schema of this kind of configuration.
        spec: Path of the file, then ':' and the argument of its `get_config` if it needs one, for example
            'configs/cifar10.py:r50'.
        overrides: Pairs (dotted field, text), for example ('optimizer.learning_rate', '0.5').

    Returns:
        The locked configuration.

    Raises:
        ConfigError: The file, an override or a value is wrong. The error lists all problems at once.
    """
    path, _, argument = spec.partition(':')
    if not pathlib.Path(path).is_file():
        raise ConfigError([f'--config={spec}: there is no file {path}; examples are in configs/'])
    return override(schema, _run_file(spec, path, argument), overrides)


def override(schema: Schema, config: ConfigDict, overrides: Iterable[tuple[str, str]]) -> ConfigDict:
    """Applies overrides to a configuration, in place, and validates the result.

    Args:
        schema: Schema of this kind of configuration.
        config: Configuration to change.
        overrides: Pairs (dotted field, text), for example ('optimizer.learning_rate', '0.5').

    Returns:
        The same configuration.

    Raises:
        ConfigError: An override or a value is wrong. The error lists all problems at once.
    """
    problems = apply_overrides(config, overrides)
    problems += check(schema, config)
    if problems:
        raise ConfigError(problems)
    return config


def _run_file(spec: str, path: str, argument: str) -> ConfigDict:
    """Returns the result of the file's get_config. An error in the file becomes a message with its line number."""
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
        raise ConfigError([f'--config={spec}: get_config returned {config!r:.40}; return a base_config()'])
    return config.lock()


def check(schema: Schema, config: ConfigDict) -> list[str]:
    """Checks all values of a configuration.

    Args:
        schema: Schema of this kind of configuration.
        config: Configuration to check.

    Returns:
        One message per problem, with the value, the rule and an example. Empty for a valid configuration.
    """
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
    """Checks names and types of all fields, because a configuration file may change both."""
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


def with_values(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A locked copy of a configuration in which some fields have other values.

    Args:
        config: Configuration to copy.
        values: Dotted field to value, for example {'data.feed': 'host'}.

    Raises:
        KeyError: There is no such field.
    """
    # Locked first, so that a field that does not exist is an error.
    changed = config.copy_and_resolve_references().lock()
    changed.update_from_flattened_dict(values)
    return changed


def to_json(config: ConfigDict) -> str:
    """Returns a configuration as the text of a JSON file."""
    return json.dumps(config.to_dict(), indent=2) + '\n'


def from_json(schema: Schema, text: str) -> ConfigDict:
    """Reads a configuration that `to_json` wrote.

    Args:
        schema: Schema of this kind of configuration.
        text: Text of the JSON file. Fields that the text lacks, because they are newer, get their defaults.

    Returns:
        The locked configuration.

    Raises:
        ConfigError: The text holds no JSON object, or its fields belong to another version of the program.
        json.JSONDecodeError: The text is not JSON.
    """

    def with_tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: with_tuples(item) for key, item in value.items()}
        return tuple(value) if isinstance(value, list) else value

    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ConfigError([f'{text.strip():.40} is not a JSON object with the fields of a configuration'])
    fields = {name: value for name, value in fields.items() if name not in schema.retired}
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
