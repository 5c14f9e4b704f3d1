"""The augmentation policy as plain data: which random transformations, with which probabilities and ranges.

The transformations are the nine of SimCLR's Figure 4 (arXiv 2002.05709) besides the original image. A
configuration names them in strings ('crop flip jitter drop blur') and holds their parameters in one nested
dictionary; `make_policy` turns both into frozen dataclasses, from which the host's and the device's
implementations are made. Nothing here depends on TensorFlow or JAX.
"""

import dataclasses
import difflib
import itertools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# Evaluation crops the centre, this share of the tighter side, of images larger than SMALL_IMAGE_SIZE.
CENTER_CROP_PROPORTION = 0.875
SMALL_IMAGE_SIZE = 32


# All orders of brightness (0), contrast (1), saturation (2) and hue (3).
JITTER_ORDERS = tuple(itertools.permutations(range(4)))

# A repeated operation draws anew; the stride leaves room for operations that are still to be invented.
_REPETITION_STRIDE = 100


class Rule(NamedTuple):
    """What a parameter must be: in words, and as a predicate."""

    text: str
    holds: Callable[[Any], bool]


def _is_number(value: Any, low: float = 0.0, high: float = float('inf')) -> bool:
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_real and math.isfinite(value) and low <= value <= high


def _is_positive_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and _is_number(value, 1)


def _is_range(value: Any, high: float = float('inf'), zero_allowed: bool = False) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    if not all(_is_number(bound, 0.0, high) for bound in value):
        return False
    return value[0] <= value[1] and (zero_allowed or value[0] > 0)


PROBABILITY = Rule('a probability in [0, 1]', lambda value: _is_number(value, 0.0, 1.0))
FRACTION = Rule('a number in [0, 1]', lambda value: _is_number(value, 0.0, 1.0))
AMOUNT = Rule('a finite number >= 0', _is_number)
HUE = Rule('a share of the colour circle in [0, 0.5]', lambda value: _is_number(value, 0.0, 0.5))
COUNT = Rule('an integer >= 1', _is_positive_integer)
FRACTION_RANGE = Rule('two numbers with 0 < low <= high <= 1', lambda value: _is_range(value, 1.0))
POSITIVE_RANGE = Rule('two numbers with 0 < low <= high', _is_range)
AMOUNT_RANGE = Rule('two numbers with 0 <= low <= high', lambda value: _is_range(value, zero_allowed=True))
BRIGHTNESS_MODE = Rule("'multiply' (SimCLRv2) or 'add' (SimCLR)", lambda value: value in ('multiply', 'add'))


def _parameter(default: Any, rule: Rule) -> Any:
    return dataclasses.field(default=default, metadata={'rule': rule})


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Crop a random box and resize it (bicubic) to the policy's size (appendix A, 'Random crop and resize').

    Attributes:
        area: range of the box's share of the image's area.
        aspect: range of the box's width / height.
        attempts: boxes tried before the whole image is taken.
        min_object_covered: smallest share of the image that a box may cover; the reference's 0.1 makes the
            smallest crop 0.1 of the image although `area` begins at 0.08.
    """

    area: tuple[float, float] = _parameter((0.08, 1.0), FRACTION_RANGE)
    aspect: tuple[float, float] = _parameter((3 / 4, 4 / 3), POSITIVE_RANGE)
    attempts: int = _parameter(100, COUNT)
    min_object_covered: float = _parameter(0.1, FRACTION)


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirror left and right with probability `p` (appendix A)."""

    p: float = _parameter(0.5, PROBABILITY)


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue in random order, clipped to [0, 1] after each.

    Source: appendix A, 'Color distortion'. A factor is drawn uniformly from [max(0, 1 - a), 1 + a] with
    a = amount * strength, the hue's shift from [-a, a].

    Attributes:
        p: probability that the jitter is applied at all.
        strength: multiplies the four amounts (1.0 for ImageNet, 0.5 for CIFAR-10).
        brightness, contrast, saturation: amounts at strength 1.
        hue: amount at strength 1, as a share of the colour circle.
        brightness_mode: 'multiply' draws a factor (SimCLRv2's code), 'add' an offset from [-a, a] (SimCLR's).
    """

    p: float = _parameter(0.8, PROBABILITY)
    strength: float = _parameter(1.0, AMOUNT)
    brightness: float = _parameter(0.8, AMOUNT)
    contrast: float = _parameter(0.8, AMOUNT)
    saturation: float = _parameter(0.8, AMOUNT)
    hue: float = _parameter(0.2, HUE)
    brightness_mode: str = _parameter('multiply', BRIGHTNESS_MODE)

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """(low, high) of what is drawn for brightness, contrast, saturation and hue."""
        brightness, contrast, saturation, hue = (
            self.strength * amount for amount in (self.brightness, self.contrast, self.saturation, self.hue)
        )
        is_offset = self.brightness_mode == 'add'
        return (
            (-brightness, brightness) if is_offset else _factors(brightness),
            _factors(contrast),
            _factors(saturation),
            (-hue, hue),
        )


def _factors(amount: float) -> tuple[float, float]:
    return max(0.0, 1.0 - amount), 1.0 + amount


@dataclasses.dataclass(frozen=True)
class ColorDrop:
    """Turn to greyscale, on three channels, with probability `p` (appendix A)."""

    p: float = _parameter(0.2, PROBABILITY)


@dataclasses.dataclass(frozen=True)
class Blur:
    """Gaussian blur with probability `p`; its standard deviation, pixels, is uniform in `sigma` (appendix A).

    The kernel reaches (height // 10) // 2 pixels to each side; pixels outside of the image are zero.
    """

    p: float = _parameter(0.5, PROBABILITY)
    sigma: tuple[float, float] = _parameter((0.1, 2.0), POSITIVE_RANGE)


@dataclasses.dataclass(frozen=True)
class Cutout:
    """Cover a square whose centre is uniform over the image; it may reach beyond the border.

    The paper gives no parameters. Half of the image's side is the choice of cutout's authors for CIFAR-10
    (arXiv 1708.04552), and they cover with the mean colour: mid-grey here, for images in [0, 1].

    Attributes:
        p: probability.
        side: the square's side as a share of the image's shorter side.
        fill: value of all three channels inside.
    """

    p: float = _parameter(1.0, PROBABILITY)
    side: float = _parameter(0.5, FRACTION)
    fill: float = _parameter(0.5, FRACTION)


@dataclasses.dataclass(frozen=True)
class Rotate:
    """With probability `p`, rotate by 0, 90, 180 or 270 degrees, each equally often."""

    p: float = _parameter(1.0, PROBABILITY)


@dataclasses.dataclass(frozen=True)
class Noise:
    """With probability `p`, add Gaussian noise whose standard deviation is uniform in `std`.

    The paper gives no parameters; images are in [0, 1], so that 0.2 is strong but leaves shapes visible.
    """

    p: float = _parameter(1.0, PROBABILITY)
    std: tuple[float, float] = _parameter((0.0, 0.2), AMOUNT_RANGE)


@dataclasses.dataclass(frozen=True)
class Sobel:
    """With probability `p`, replace each channel by the magnitude of its Sobel gradient.

    The paper gives no parameters; the magnitude is divided by 4, so that a step from 0 to 1 gives 1.
    """

    p: float = _parameter(1.0, PROBABILITY)


Operation = RandomCrop | Flip | ColorJitter | ColorDrop | Blur | Cutout | Rotate | Noise | Sobel

OPERATIONS: dict[str, type] = {
    'crop': RandomCrop,
    'flip': Flip,
    'jitter': ColorJitter,
    'drop': ColorDrop,
    'blur': Blur,
    'cutout': Cutout,
    'rotate': Rotate,
    'noise': Noise,
    'sobel': Sobel,
}


def operation_number(kind: type, repetition: int) -> int:
    """What tells the draws of an operation from those of others in its branch: no other's presence changes it.

    Args:
        kind: the operation's class.
        repetition: how many operations of this class come before it in its branch.
    """
    return list(OPERATIONS.values()).index(kind) + _REPETITION_STRIDE * repetition


# SimCLR's own augmentation (appendix A); its CIFAR-10 recipe leaves the blur out.
SIMCLR_VIEW = 'crop flip jitter drop blur'
SUPERVISED_VIEW = 'crop flip'


@dataclasses.dataclass(frozen=True)
class Policy:
    """What becomes of one image: operations shared by all views, then each view's own, in the order given.

    An image without any crop on its way is resized (bicubic) to `size`. All views are clipped to [0, 1].

    Attributes:
        size: height and width of the views, pixels.
        shared: operations applied once, before the branches split (Figure 5: one crop for both branches).
        views: one tuple of operations a view; an empty one leaves the view as `shared` made it.
        applied: where this is the second part of another policy, each view's operations in the first part: a
            repeated operation counts from them, so that it draws what it draws in the whole policy.
    """

    size: int
    shared: tuple[Operation, ...]
    views: tuple[tuple[Operation, ...], ...]
    applied: tuple[tuple[Operation, ...], ...] = ()

    def split(self) -> tuple['Policy', 'Policy']:
        """Parts a whole policy into what needs whole images and what does with views of the final size.

        The first part is all of `shared` and each view's operations up to its last crop; it makes one image of
        `size` a view. The second is the rest of each view.

        Raises:
            ValueError: the policy is a second part itself.
        """
        if self.applied:
            raise ValueError('a second part cannot be split again; split the whole policy')
        parts = [_split_after_last_crop(view) for view in self.views]
        first, rest = (tuple(part) for part in zip(*parts, strict=True))
        return Policy(self.size, self.shared, first), Policy(self.size, (), rest, applied=first)


def _split_after_last_crop(operations: tuple[Operation, ...]) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
    crops = [place for place, operation in enumerate(operations, start=1) if isinstance(operation, RandomCrop)]
    place = crops[-1] if crops else 0
    return operations[:place], operations[place:]


def default_parameters() -> dict[str, dict[str, Any]]:
    """Every operation's parameters with their defaults: `{'crop': {'area': (0.08, 1.0), ...}, ...}`."""
    return {name: dataclasses.asdict(operation()) for name, operation in OPERATIONS.items()}


def make_policy(
    size: int,
    *,
    shared: str = '',
    views: Sequence[str] = (SIMCLR_VIEW, SIMCLR_VIEW),
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
) -> Policy:
    """Builds a policy from the strings and plain values that a configuration holds.

    Args:
        size: height and width of the views, pixels.
        shared: operations applied once for all views, names separated by spaces ('' for none).
        views: one such string a view.
        parameters: values that differ from `default_parameters()`, as nested dictionary.

    Returns:
        The policy.

    Raises:
        ValueError: with everything that `check` finds, one problem a line.

    Example:
        Only the second view is blurred, both have the same crop::

            make_policy(32, shared='crop', views=('', 'blur'), parameters={'blur': {'p': 1.0}})
    """
    parameters = parameters or {}
    problems = check(size, shared, views, parameters)
    if problems:
        raise ValueError('\n'.join(problems))

    def operations(names: str) -> tuple[Operation, ...]:
        return tuple(OPERATIONS[name](**_hashable(parameters.get(name, {}))) for name in names.split())

    return Policy(size, operations(shared), tuple(operations(view) for view in views))


def _hashable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Ranges come back from JSON as lists; a frozen dataclass holds tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def check(size: int, shared: str, views: Sequence[str], parameters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Everything that is wrong with a policy's description; arguments as for `make_policy`.

    Returns:
        One message a problem, each with the value, the rule and the cure; empty if all is well.
    """
    problems = []
    if not _is_positive_integer(size):
        problems.append(f'size={size!r}: must be {COUNT.text}, for example 224')
    problems += _check_names('shared', shared)
    if isinstance(views, str) or not isinstance(views, Sequence) or not views:
        problems.append(f'views={views!r}: must be one string a view, for example {(SIMCLR_VIEW,) * 2}')
    else:
        for number, view in enumerate(views):
            problems += _check_names(f'views[{number}]', view)
    for name, values in parameters.items():
        if name not in OPERATIONS:
            problems.append(f'parameters: {_unknown("operation", name, OPERATIONS)}')
        else:
            problems += _check_parameters(name, values)
    return problems


def _check_names(place: str, names: str) -> list[str]:
    if not isinstance(names, str):
        return [f'{place}={names!r}: must be one string of names, for example {SIMCLR_VIEW!r}']
    unknown = [name for name in names.split() if name not in OPERATIONS]
    return [f'{place}={names!r}: {_unknown("operation", name, OPERATIONS)}' for name in unknown]


def _check_parameters(operation: str, values: Mapping[str, Any]) -> list[str]:
    if not isinstance(values, Mapping):
        return [f'{operation}={values!r}: must be a dictionary of parameters, for example {{}}']
    fields = {field.name: field for field in dataclasses.fields(OPERATIONS[operation])}
    problems = []
    for name, value in values.items():
        if name not in fields:
            problems.append(f'{operation}: {_unknown("parameter", name, fields)}')
        elif not fields[name].metadata['rule'].holds(value):
            rule, default = fields[name].metadata['rule'].text, fields[name].default
            problems.append(f'{operation}.{name}={value!r}: must be {rule}, for example {default!r}')
    return problems


def _unknown(kind: str, name: str, known: Mapping[str, Any]) -> str:
    nearest = difflib.get_close_matches(str(name), known, n=1)
    hint = f'did you mean {nearest[0]!r}? ' if nearest else ''
    return f'unknown {kind} {name!r}; {hint}there are: {", ".join(known)}'
