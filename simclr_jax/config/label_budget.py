"""The label budget: how many labels an evaluation may learn from."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Labels:
    """Number of labels that a classifier may learn from. With neither field set, all labels.

    Attributes:
        per_class: Labels per class, at least 1.
        fraction: Share of all labels, in (0, 1).
    """

    per_class: int | None = None
    fraction: float | None = None

    def __str__(self) -> str:
        """Returns the text that `parse_labels` reads."""
        if self.fraction is not None:
            return f'{100 * self.fraction:g}%'
        return 'all' if self.per_class is None else str(self.per_class)


def parse_labels(text: str) -> Labels:
    """Reads a label budget.

    Args:
        text: 'all', a number of labels per class such as '10', or a share of all labels such as '1%'.

    Returns:
        The label budget.

    Raises:
        ValueError: The text is none of these.

    Example:
        >>> parse_labels('10')
        Labels(per_class=10, fraction=None)
        >>> parse_labels('1%').fraction
        0.01
        >>> str(parse_labels('12.5%')), str(parse_labels('100%'))
        ('12.5%', 'all')
    """
    text = text.strip()
    if text in ('all', '100%'):
        return Labels()
    if re.fullmatch(r'[0-9]+', text) and int(text) > 0:
        return Labels(per_class=int(text))
    if re.fullmatch(r'[0-9]*\.?[0-9]+%', text) and 0 < float(text[:-1]) < 100:
        return Labels(fraction=float(text[:-1]) / 100)
    raise ValueError(
        f"labels '{text}' must be 'all', a whole number above 0 of labels per class as in '10', or a share of all "
        "labels up to 100% as in '1%'"
    )
