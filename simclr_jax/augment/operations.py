"""The operations of the augmentation as plain data: their names, parameters, numbers and random draws.

They are the nine transformations of SimCLR's Figure 4 (arXiv 2002.05709). A configuration names them in strings
('crop flip jitter drop blur') and holds their parameters in one nested dictionary. Nothing here depends on TensorFlow
or JAX.

To add an operation:

1. Here: write its class, with an unused `number`, and add it to `Change` and `OPERATIONS`.
2. In `device.py`: add its case to `_change`.
3. In `host.py`: add its case to `_change`. Without it, the operation runs with data.feed=hybrid and resident only.

Configuration, checks and messages follow from the class. The three files stay apart because each must be importable
without the others' framework: this one without JAX and TensorFlow, `device.py` without TensorFlow.
"""

import dataclasses
import itertools
import math
import numbers
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

# All orders of brightness (0), contrast (1), saturation (2) and hue (3).
JITTER_ORDERS = tuple(itertools.permutations(range(4)))

# An operation that stands several times in a view draws new numbers each time. Numbers of operations stay below this.
REPETITION_STRIDE = 100


class Rule(NamedTuple):
    """The values that a parameter may have: in words, and as a predicate."""

    text: str
    holds: Callable[[Any], bool]


def _is_number(value: Any, low: float = 0.0, high: float = float('inf')) -> bool:
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_real and math.isfinite(value) and low <= float(value) <= high


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


def _parameter(default: Any, rule: Rule, meaning: str) -> Any:
    return dataclasses.field(default=default, metadata={'rule': rule, 'meaning': meaning})


# Every class below has a `number`. The random numbers of an operation follow from it, so it is fixed for ever: a run
# that resumes with a newer version sees the same pixels. Every class but the crop has `uniforms`, the uniform draws of
# one application: the first decides whether the operation is applied, the others make its parameters.


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Crop a random box and resize it (bicubic) to the policy's size (appendix A, 'Random crop and resize').

    The reference's `min_object_covered` of 0.1 makes the smallest crop 0.1 of the image, although `area` begins at
    0.08.
    """

    number: ClassVar[int] = 0

    area: tuple[float, float] = _parameter((0.08, 1.0), FRACTION_RANGE, "Range of the box's share of the image's area.")
    aspect: tuple[float, float] = _parameter((3 / 4, 4 / 3), POSITIVE_RANGE, "Range of the box's width / height.")
    attempts: int = _parameter(100, COUNT, 'Boxes tried before the whole image is taken.')
    min_object_covered: float = _parameter(0.1, FRACTION, 'Smallest share of the image that a box may cover.')


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirror left and right with probability `p` (appendix A)."""

    number: ClassVar[int] = 1
    uniforms: ClassVar[int] = 1

    p: float = _parameter(0.5, PROBABILITY, 'Probability that the operation is applied.')


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue in random order, clipped to [0, 1] after each.

    A factor is drawn uniformly from [max(0, 1 - a), 1 + a] with a = amount * strength. The hue's shift is drawn from
    [-a, a]. Source: appendix A, 'Color distortion'.
    """

    number: ClassVar[int] = 2
    uniforms: ClassVar[int] = 6

    p: float = _parameter(0.8, PROBABILITY, 'Probability that the jitter is applied at all.')
    strength: float = _parameter(1.0, AMOUNT, 'Factor on the four amounts (1.0 for ImageNet, 0.5 for CIFAR-10).')
    brightness: float = _parameter(0.8, AMOUNT, 'Amount of brightness at strength 1.')
    contrast: float = _parameter(0.8, AMOUNT, 'Amount of contrast at strength 1.')
    saturation: float = _parameter(0.8, AMOUNT, 'Amount of saturation at strength 1.')
    hue: float = _parameter(0.2, HUE, 'Amount of hue at strength 1, as a share of the colour circle.')
    brightness_mode: str = _parameter(
        'multiply', BRIGHTNESS_MODE, "Draw of the brightness: a factor ('multiply'), or an offset in [-a, a] ('add')."
    )

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """(low, high) of the values drawn for brightness, contrast, saturation and hue."""
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

    number: ClassVar[int] = 3
    uniforms: ClassVar[int] = 1

    p: float = _parameter(0.2, PROBABILITY, 'Probability that the operation is applied.')


@dataclasses.dataclass(frozen=True)
class Blur:
    """Gaussian blur with probability `p` (appendix A). Its standard deviation, in pixels, is uniform in `sigma`.

    The kernel reaches (height // 10) // 2 pixels to each side. Pixels outside of the image are zero.
    """

    number: ClassVar[int] = 4
    uniforms: ClassVar[int] = 2

    p: float = _parameter(0.5, PROBABILITY, 'Probability that the operation is applied.')
    sigma: tuple[float, float] = _parameter((0.1, 2.0), POSITIVE_RANGE, 'Range of the standard deviation, in pixels.')


@dataclasses.dataclass(frozen=True)
class Cutout:
    """Cover a square whose centre is uniform over the image. The square may reach beyond the border.

    The SimCLR paper gives no parameters. The authors of cutout cover half of the image's side on CIFAR-10
    (arXiv 1708.04552), with the mean colour. Here that is mid-grey, for images in [0, 1].
    """

    number: ClassVar[int] = 5
    uniforms: ClassVar[int] = 3

    p: float = _parameter(1.0, PROBABILITY, 'Probability that the operation is applied.')
    side: float = _parameter(0.5, FRACTION, 'Side of the square / shorter side of the image.')
    fill: float = _parameter(0.5, FRACTION, 'Value of all three channels inside of the square.')


@dataclasses.dataclass(frozen=True)
class Rotate:
    """With probability `p`, rotate by 0, 90, 180 or 270 degrees, each equally often."""

    number: ClassVar[int] = 6
    uniforms: ClassVar[int] = 2

    p: float = _parameter(1.0, PROBABILITY, 'Probability that the operation is applied.')


@dataclasses.dataclass(frozen=True)
class Noise:
    """With probability `p`, add Gaussian noise whose standard deviation is uniform in `std`.

    The SimCLR paper gives no parameters. Images are in [0, 1], so that 0.2 is strong but leaves shapes visible.
    """

    number: ClassVar[int] = 7
    uniforms: ClassVar[int] = 2

    p: float = _parameter(1.0, PROBABILITY, 'Probability that the operation is applied.')
    std: tuple[float, float] = _parameter((0.0, 0.2), AMOUNT_RANGE, 'Range of the standard deviation of the noise.')


@dataclasses.dataclass(frozen=True)
class Sobel:
    """With probability `p`, replace each channel by the magnitude of its Sobel gradient.

    The SimCLR paper gives no parameters. The magnitude is divided by 4, so that a step from 0 to 1 gives 1.
    """

    number: ClassVar[int] = 8
    uniforms: ClassVar[int] = 1

    p: float = _parameter(1.0, PROBABILITY, 'Probability that the operation is applied.')


# Operations that keep the size of the image, and all operations.
Change = Flip | ColorJitter | ColorDrop | Blur | Cutout | Rotate | Noise | Sobel
Operation = RandomCrop | Change

# Operations by their names in a configuration.
OPERATIONS: dict[str, type[Operation]] = {
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


def operation_number(kind: type[Operation], repetition: int) -> int:
    """Number that separates the random draws of an operation from all others in its branch.

    It depends on the operation alone: operations that stand beside it, or that a later version adds, do not change its
    draws.

    Args:
        kind: Class of the operation.
        repetition: Operations of this class that come before it in its branch.
    """
    return kind.number + REPETITION_STRIDE * repetition
