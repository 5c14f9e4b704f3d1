"""The declaration of a configuration's fields: name, default, meaning and accepted values, all in one place."""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any

from ml_collections import ConfigDict

# Accepted values: in words, and as a predicate of values of the right type.
Rule = tuple[str, Callable[[Any], bool]]
COUNT: Rule = ('an integer >= 1', lambda value: value >= 1)
NATURAL: Rule = ('an integer >= 0', lambda value: value >= 0)
POSITIVE: Rule = ('a finite number > 0', lambda value: 0 < value < math.inf)
AMOUNT: Rule = ('a finite number >= 0', lambda value: 0 <= value < math.inf)
SHARE: Rule = ('a number in [0, 1]', lambda value: 0 <= value <= 1)
BELOW_ONE: Rule = ('a number in [0, 1)', lambda value: 0 <= value < 1)
COUNTS: Rule = ('integers >= 1', lambda value: bool(value) and all(member >= 1 for member in value))
SEED: Rule = ('an integer in [0, 2^31)', lambda value: value >= 0)

# Most pixels of an image that is unpacked: Pillow's own number, a quarter of a gibibyte of RGB.
MAX_IMAGE_PIXELS = 89_478_485
# Steps, sizes and positions are int32 on the devices.
INTEGERS_END = 2**31
_LONGEST_SHOWN = 80
_TYPES = {bool: 'true or false', int: 'an integer', float: 'a number', str: 'a text'}
_SEVERAL = {int: 'integers', float: 'numbers', str: 'texts'}


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a configuration.

    Attributes:
        name: Name with dots, such as 'loss.temperature'.
        default: Value where nothing else is said. Its type is the type of the field.
        meaning: What the field sets, in one or more sentences.
        rule: Accepted values of the right type. None: all of them.
        choices: Accepted values of a field that holds one of several.
        of: Type of the members of a tuple. None: the type of the default's first member.
        is_path: Whether the field, or each member of it, may be a path, in which ~ is expanded.
    """

    name: str
    default: Any
    meaning: str
    rule: Rule | None = None
    choices: tuple = ()
    of: type | None = None
    is_path: bool = False

    @property
    def member_type(self) -> type:
        """Type of the members of a tuple, or of the value of any other field."""
        if self.of is not None:
            return self.of
        return type(self.default[0] if isinstance(self.default, tuple) else self.default)

    @property
    def accepts(self) -> str:
        """The accepted values in words."""
        if self.choices:
            return ' | '.join(map(str, self.choices))
        if self.rule:
            return self.rule[0]
        if isinstance(self.default, tuple):
            return f'{_SEVERAL[self.member_type]} with commas between them'
        return 'a path' if self.is_path else _TYPES[self.member_type]

    def type_problem(self, value: Any) -> str:
        """Checks the type of a value. Returns a message with the value, the rule and an example, or ''."""
        told = f'{self.name}={shown(value)}: must be'
        if not isinstance(self.default, tuple):
            if not _is(value, self.member_type):
                return f'{told} of type {self.member_type.__name__}, like {self.default!r}'
        elif not isinstance(value, tuple):
            return f'{told} of type tuple, like {self.default!r}'
        members = value if isinstance(value, tuple) else (value,)
        if not all(_is(member, self.member_type) for member in members):
            return f'{told} {self.accepts}, for example {self.default!r}'
        if any(isinstance(member, int) and abs(member) >= INTEGERS_END for member in members):
            return f'{told} below 2^31, for example {self.default!r}'
        return ''

    def problem(self, value: Any) -> str:
        """Checks a value of the right type. Returns a message with the value, the rule and the cure, or ''."""
        told = f'{self.name}={shown(value)}: must be'
        if self.choices and value not in self.choices:
            nearest = difflib.get_close_matches(str(value), map(str, self.choices), n=1)
            hint = f'; did you mean {nearest[0]}?' if nearest else ''
            return f'{told} one of {", ".join(map(str, self.choices))}{hint}'
        if self.rule and not self.rule[1](value):
            return f'{told} {self.rule[0]}, for example {self.default!r}'
        return ''


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, numbers.Real if kind is float else kind)


def shown(value: Any) -> str:
    """A value as text for a message, shortened where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # Python writes no integer of more than 4,300 digits, and no deeply nested list.
        return f'({type(value).__name__} that is too long to show)'
    return text if len(text) <= _LONGEST_SHOWN else f'{text[: _LONGEST_SHOWN - 20]}... ({len(text)} characters)'


def defaults(fields: Iterable[Field]) -> ConfigDict:
    """Makes the locked configuration of the fields' defaults, with a group for each part before a dot."""
    config = ConfigDict()
    for field in fields:
        *groups, name = field.name.split('.')
        place = config
        for group in groups:
            if group not in place:
                place[group] = ConfigDict()
            place = place[group]
        place[name] = field.default
    return config.lock()
