"""Turns texts of the command line into values of a configuration."""

import ast
import contextlib
import difflib
import re
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from simclr_jax.config.fields import Field
from simclr_jax.config.paths import ConfigError, user_path


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


def apply_overrides(config: ConfigDict, fields: Iterable[Field], overrides: Iterable[tuple[str, str]]) -> list[str]:
    """Sets fields of a configuration, in place.

    Args:
        config: Configuration to change.
        fields: Fields of this kind of configuration.
        overrides: Pairs (dotted field, text), for example ('loss.temperature', '0.5').

    Returns:
        One message for each field that cannot be set.
    """
    known = {field.name: field for field in fields}
    problems, values = [], {}
    for name, text in overrides:
        if name not in known:
            problems.append(f'--config.{name}={text}: {unknown_field(name, known)}')
            continue
        try:
            values[name] = parse_value(text, known[name])
        except ValueError as error:
            problems.append(f'--config.{name}={text}: {error}')
    with config.unlocked():
        config.update_from_flattened_dict(values)
    return problems


def unknown_field(name: str, fields: Iterable[str]) -> str:
    """Returns the message about an unknown field, which suggests the most similar known ones.

    Args:
        name: Dotted name that the user gave.
        fields: Dotted names of the known fields.
    """
    candidates = similar_fields(name, fields)
    groups = sorted({field.rpartition('.')[0] for field in fields} - {''})
    if name in groups:
        inside = [field for field in fields if field.startswith(f'{name}.')]
        return f'{name} is a group of fields; set one of {", ".join(inside)}'
    hint = f'; did you mean {" or ".join(candidates)}?' if candidates else ''
    return f'there is no such field{hint} (`simclr config` lists all fields)'


def similar_fields(name: str, fields: Iterable[str]) -> list[str]:
    """Known fields that a name may have meant: those of the same last part, or else the most similar one.

    Args:
        name: Dotted name that the user gave.
        fields: Dotted names of the known fields.
    """
    fields = list(fields)
    same_ending = [field for field in fields if field.rpartition('.')[2] == name.rpartition('.')[2]]
    return same_ending or difflib.get_close_matches(name, fields, n=1, cutoff=0.5)


def parse_value(text: str, field: Field) -> Any:
    """Reads the value of a field.

    Args:
        text: Text of the command line.
        field: Declaration of the field. The value gets its type.

    Raises:
        ValueError: The text is no value of this type. The message says what it must be.
    """
    if isinstance(field.default, tuple):
        return _parse_tuple(text, field)
    return user_path(text) if field.is_path else _parse_one(text, field.member_type)


def _parse_one(text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ('true', 'false', '1', '0'):
            raise ValueError('must be true or false')
        return text.lower() in ('true', '1')
    if kind is int:
        return _parse_integer(text)
    if kind is float:
        try:
            return float(text)
        except ValueError:
            raise ValueError('must be a number, for example 0.5 or 1e-4') from None
    return text


def _parse_integer(text: str) -> int:
    """Reads an integer, also one that is written like 1e5 or 20.0."""
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        if (number := float(text)).is_integer():
            return int(number)
    raise ValueError('must be an integer, for example 100')


def _parse_tuple(text: str, field: Field) -> tuple:
    # A name may contain brackets, numbers do not.
    members = split_list(text if field.member_type is str else text.strip('()[] '))
    if field.is_path:
        return tuple(map(user_path, members))
    try:
        return tuple(_parse_one(member, field.member_type) for member in members)
    except ValueError:
        example = ','.join(map(str, field.default))
        hint = f', for example {example}' if example else ''
        raise ValueError(f'must be numbers with commas between them{hint}') from None


def split_list(text: str) -> list[str]:
    """Splits a list of the command line at its commas. An empty text, () and [] are the empty list.

    A member in quotes keeps its commas. Python's notation, as in "('crop', 'crop flip')", is understood too.

    Args:
        text: Text of the command line.

    Example:
        >>> split_list('knn, linear')
        ['knn', 'linear']
        >>> split_list('"folder:/data/cats, dogs",cifar10')
        ['folder:/data/cats, dogs', 'cifar10']
        >>> split_list('')
        []
    """
    text = text.strip()
    if text in ('', '()', '[]'):
        return []
    if (text[0], text[-1]) in (('(', ')'), ('[', ']')):
        with contextlib.suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            value = ast.literal_eval(text)
            # Without a quoted member it is no such list: a directory may be called [1].
            if isinstance(value, tuple | list) and any(isinstance(member, str) for member in value):
                return [str(member) for member in value]
    return [_unquoted(member) for member in re.findall(_MEMBER, text)]


# A member up to the next comma or the end. Where it begins and ends with the same quotes, it may contain commas.
_MEMBER = re.compile(r"""(?:^|(?<=,))\s*("[^"]*"|'[^']*'|[^,]*?)\s*(?=,|\Z)""")


def _unquoted(member: str) -> str:
    is_quoted = len(member) > 1 and member[0] == member[-1] and member[0] in '"\''
    return member[1:-1] if is_quoted else member


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
            values[key] = parse_value(text, Field(key, defaults[key], ''))
        except ValueError as error:
            problems.append(f"config argument '{part}': {error}")
    if problems:
        raise ConfigError(problems)
    return values
