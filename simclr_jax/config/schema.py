"""Schemas of configurations: which fields belong together, and how their values are set, checked and saved."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from simclr_jax.config.fields import Field, defaults, shown
from simclr_jax.config.files import run_file
from simclr_jax.config.overrides import apply_overrides, unknown_field
from simclr_jax.config.paths import ConfigError, user_path

# A damaged file may have any number of mistakes of any length.
MOST_PROBLEMS, LONGEST_PROBLEM = 20, 1000
_LONGEST_NAME = 60


@dataclasses.dataclass(frozen=True)
class Schema:
    """One kind of configuration.

    Attributes:
        fields: All fields, in the order of the configuration.
        check_together: Returns messages about fields that do not fit together. It sees only configurations in which
            every field has a value of its type.
        retired: Top-level fields of earlier versions that changed no result. A saved configuration may still hold them.
    """

    fields: tuple[Field, ...]
    check_together: Callable[[ConfigDict], list[str]]
    retired: tuple[str, ...] = ()

    @functools.cached_property
    def by_name(self) -> dict[str, Field]:
        """Fields by their dotted names."""
        return {field.name: field for field in self.fields}

    @functools.cached_property
    def groups(self) -> frozenset[str]:
        """Dotted names of the groups of fields."""
        parts = [field.name.split('.') for field in self.fields]
        return frozenset('.'.join(part[:end]) for part in parts for end in range(1, len(part)))


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
    return override(schema, run_file(spec), overrides)


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
    values, problems = _values(schema, config)
    problems += _missing(schema, values, config)
    if problems:
        raise ConfigError(problems)
    paths = {field.name: _expanded(values[field.name]) for field in schema.fields if field.is_path}
    with config.unlocked():
        config.update_from_flattened_dict(paths)
    problems = apply_overrides(config, schema.fields, overrides)
    problems += check(schema, config)
    if problems:
        raise ConfigError(problems)
    return config


def check(schema: Schema, config: ConfigDict) -> list[str]:
    """Checks all values of a configuration.

    Args:
        schema: Schema of this kind of configuration.
        config: Configuration to check.

    Returns:
        One message per problem, with the value, the rule and an example. Empty for a valid configuration.
    """
    values, problems = _values(schema, config)
    problems += _missing(schema, values, config)
    problems += _of_wrong_type(schema, values)
    if problems:
        return problems
    problems = [problem for name, value in values.items() if (problem := schema.by_name[name].problem(value))]
    return problems + schema.check_together(config)


def _values(schema: Schema, tree: Any, prefix: str = '') -> tuple[dict[str, Any], list[str]]:
    """Reads nested groups of fields, because a configuration file or a damaged config.json may hold any names.

    Args:
        schema: Schema of this kind of configuration.
        tree: Configuration, group of it, or dictionary of one.
        prefix: Text in front of the names.

    Returns:
        Values of the known fields by their dotted names, and a message for each other name.
    """
    values, problems = {}, []
    for name, value in tree.items():
        full = f'{prefix}{name}'
        if full in schema.by_name:
            values[full] = value
        elif full in schema.groups and isinstance(value, Mapping | ConfigDict):
            inside, wrong = _values(schema, value, f'{full}.')
            values |= inside
            problems += wrong
        else:
            short = full[:_LONGEST_NAME]
            problems.append(f'{short}={shown(value)}: {unknown_field(short, schema.by_name)}')
    return values, problems


def _missing(schema: Schema, values: Mapping[str, Any], tree: Any) -> list[str]:
    """A message for each field that is missing, unless its whole group is, and something else is in its place."""
    replaced = tuple(f'{name}.' for name in tree if not isinstance(tree[name], Mapping | ConfigDict))
    return [
        f'{name} is missing; start from base_config()'
        for name in schema.by_name
        if name not in values and not name.startswith(replaced)
    ]


def _of_wrong_type(schema: Schema, values: Mapping[str, Any]) -> list[str]:
    return [problem for name, value in values.items() if (problem := schema.by_name[name].type_problem(value))]


def _expanded(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_expanded, value))
    return user_path(value) if isinstance(value, str) else value


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
        ConfigError: The text is no JSON, or no object, or its fields belong to another version of the program.
    """
    try:
        tree = json.loads(text)
    except RecursionError:
        raise ConfigError(['the text is nested too deeply for a configuration']) from None
    except ValueError as error:
        # Beside JSONDecodeError: an integer of more than 4,300 digits.
        raise ConfigError([f'the text is not JSON: {error}']) from error
    if not isinstance(tree, dict):
        raise ConfigError([f'{text.strip():.40} is not a JSON object with the fields of a configuration'])
    tree = {name: value for name, value in tree.items() if name not in schema.retired}
    values, problems = _values(schema, tree)
    # JSON has lists in the place of tuples.
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    problems += _of_wrong_type(schema, values)
    if problems:
        raise ConfigError(_shortened(problems))
    config = with_values(defaults(schema.fields), values)
    problems = check(schema, config)
    if problems:
        raise ConfigError(_shortened(problems))
    return config


def _shortened(problems: list[str]) -> list[str]:
    return [problem[:LONGEST_PROBLEM] for problem in problems[:MOST_PROBLEMS]]
