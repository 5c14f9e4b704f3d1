"""Turns texts of the command line into values of a configuration."""

import ast
import difflib
import numbers
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict


class ConfigError(ValueError):
    """A mistake in the user's settings.

    Args:
        problems: One message per problem. Each names the value, the rule and the cure.
    """

    def __init__(self, problems: Sequence[str]):
        super().__init__('\n'.join(problems))
        self.problems = list(problems)


def flatten(config: ConfigDict, prefix: str = '') -> dict[str, object]:
    """Returns all fields by their dotted names, in the order of the configuration.

    Args:
        config: Configuration with groups of fields.
        prefix: Text in front of every name.

    Returns:
        A dictionary such as {'seed': 0, 'data.source': 'tfds', ...}.
    """
    fields = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            fields.update(flatten(value, f'{prefix}{name}.'))
        else:
            fields[prefix + name] = value
    return fields


def apply_overrides(config: ConfigDict, overrides: Iterable[tuple[str, str]]) -> list[str]:
    """Sets fields of a configuration, in place.

    Args:
        config: Configuration to change.
        overrides: Pairs (dotted field, text), for example ('loss.temperature', '0.5').

    Returns:
        One message for each field that cannot be set.
    """
    problems = []
    for name, text in overrides:
        fields = flatten(config)
        if name not in fields:
            problems.append(f'--config.{name}={text}: {unknown_field(name, fields)}')
            continue
        try:
            value = _parse(text, fields[name])
        except ValueError as error:
            problems.append(f'--config.{name}={text}: {error}')
            continue
        with config.unlocked():
            config.update_from_flattened_dict({name: value})
    return problems


def unknown_field(name: str, fields: dict[str, object]) -> str:
    """Returns the message about an unknown field, which suggests the most similar known ones.

    Args:
        name: Dotted name that the user gave.
        fields: Known fields by their dotted names.
    """
    groups = sorted({field.rpartition('.')[0] for field in fields} - {''})
    if name in groups:
        inside = [field for field in fields if field.startswith(f'{name}.')]
        return f'{name} is a group of fields; set one of {", ".join(inside)}'
    nearest = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
    same_ending = [field for field in fields if field.rpartition('.')[2] == name.rpartition('.')[2]]
    candidates = same_ending or nearest
    hint = f'; did you mean {" or ".join(candidates)}?' if candidates else ''
    return f'there is no such field{hint} (see simclr_jax/config/pretraining.py, and evaluation.py there)'


def _parse(text: str, current: object) -> object:
    """Reads a value in the type of the field's current value."""
    if isinstance(current, bool):
        if text.lower() not in ('true', 'false', '1', '0'):
            raise ValueError('must be true or false')
        return text.lower() in ('true', '1')
    if isinstance(current, int):
        try:
            return int(text)
        except ValueError:
            raise ValueError('must be an integer, for example 100') from None
    if isinstance(current, float):
        try:
            return float(text)
        except ValueError:
            raise ValueError('must be a number, for example 0.5 or 1e-4') from None
    if isinstance(current, tuple):
        return _parse_tuple(text, current)
    return text


def _parse_tuple(text: str, current: tuple) -> tuple:
    try:
        value = ast.literal_eval(text)
        value = tuple(value) if isinstance(value, tuple | list) else (value,)
    except (ValueError, TypeError, SyntaxError):
        value = tuple(part.strip() for part in text.strip('()[]').split(','))
    if current and isinstance(current[0], str):
        return tuple(str(part) for part in value)
    # An empty default shows no type. Then the rule of the field checks the values.
    if current and not all(isinstance(part, numbers.Real) for part in value):
        example = ','.join(map(str, current))
        raise ValueError(f'must be numbers with commas between them, for example {example}')
    is_float = bool(current) and isinstance(current[0], float)
    return tuple(float(part) for part in value) if is_float else value


def parse_argument(argument: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """Reads the argument of a configuration file, 'key=value,key=value'.

    Args:
        argument: Text behind the ':' of --config. '': the defaults.
        defaults: Known keys with their defaults. A value has the type of its default.

    Returns:
        The defaults, with the given values in their places.

    Raises:
        ConfigError: A key is unknown, or a value has another type.

    Example:
        >>> parse_argument('depth=18', {'depth': 50, 'width': 1.0})
        {'depth': 18, 'width': 1.0}
    """
    values, problems = dict(defaults), []
    for part in filter(None, re.split(r',\s*', argument)):
        key, _, text = part.partition('=')
        if key not in defaults:
            problems.append(f"config argument '{part}': unknown key; choose from {', '.join(defaults)}")
            continue
        try:
            values[key] = _parse(text, defaults[key])
        except ValueError as error:
            problems.append(f"config argument '{part}': {error}")
    if problems:
        raise ConfigError(problems)
    return values
