"""The table of results with one row per measurement, for a terminal and as Markdown."""

import re
from collections.abc import Iterable

from simclr_jax.config.paths import printable
from simclr_jax.evaluation.results import ENCODERS, Results, cell, headings


def of_encoders(results: Results, *, markdown: bool = False) -> str:
    """Makes a table with one column per kind of features: first the baselines, then the trained encoder.

    Args:
        results: Results of one work directory.
        markdown: Whether a Markdown program reads the table. Then characters with a meaning in Markdown are escaped.

    Returns:
        The table, with aligned columns.
    """
    found = {(score.row, score.encoder): score for score in results.scores}
    columns = [name for name in ENCODERS if any(score.encoder == name for score in results.scores)]
    titles = headings(dict.fromkeys(score.row for score in results.scores))
    written = escaped if markdown else printable
    rows = [[written(title), *(cell(found.get((row, name))) for name in columns)] for row, title in titles.items()]
    return _aligned([['', *(ENCODERS[name] for name in columns)], *rows])


def of_workdirs(results: dict[str, Results]) -> str:
    """Makes a table with one column per work directory, for its trained encoder.

    Args:
        results: Results by the name of their work directory.

    Returns:
        The table, with aligned columns.
    """
    found = {
        (score.row, directory): score
        for directory, part in results.items()
        for score in part.scores
        if score.encoder == 'simclr'
    }
    titles = headings(dict.fromkeys(row for row, _ in found))
    rows = [[printable(title), *(cell(found.get((row, name))) for name in results)] for row, title in titles.items()]
    steps = [f'{printable(directory)} (step {part.step})' for directory, part in results.items()]
    return _aligned([['', *steps], *rows])


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line.

    Args:
        text: Text with any characters, such as the path of a data set.

    Example:
        >>> escaped('photos/[bold] a|b')
        'photos/\\\\[bold\\\\] a\\\\|b'
    """
    return re.sub(r'([\\`*_\[\]<>|&$~#])', r'\\\1', printable(text))


def _aligned(rows: Iterable[list[str]]) -> str:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for number, row in enumerate(rows):
        first, *others = [
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append('| ' + ' | '.join([first, *others]) + ' |')
        if number == 0:
            rule = ['-' * widths[0], *('-' * (width - 1) + ':' for width in widths[1:])]
            lines.append('| ' + ' | '.join(rule) + ' |')
    return '\n'.join(lines)
