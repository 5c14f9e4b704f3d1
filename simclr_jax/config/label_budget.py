"""How many labels an evaluation may learn from."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Labels:
    """How many labels may be used: so many a class, a fraction in (0, 1) of them, or (neither given) all."""

    per_class: int | None = None
    fraction: float | None = None

    def __str__(self) -> str:
        """As `parse_labels` reads it."""
        if self.fraction is not None:
            return f'{100 * self.fraction:g}%'
        return 'all' if self.per_class is None else str(self.per_class)


def parse_labels(text: str) -> Labels:
    """Reads 'all', '10' (a class) or '1%' (of all labels).

    Raises:
        ValueError: anything else.
    """
    text = text.strip()
    if text in ('all', '100%'):
        return Labels()
    if re.fullmatch(r'[0-9]+', text) and int(text) > 0:
        return Labels(per_class=int(text))
    if re.fullmatch(r'[0-9]*\.?[0-9]+%', text) and 0 < float(text[:-1]) < 100:
        return Labels(fraction=float(text[:-1]) / 100)
    raise ValueError(
        f"labels '{text}' must be 'all', a whole number above 0 of labels a class as in '10', or a share of them "
        "all up to 100% as in '1%'"
    )
