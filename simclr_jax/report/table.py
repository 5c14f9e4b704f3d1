"""The table of results with one row per measurement, for a terminal and as Markdown."""

from collections.abc import Iterable

from simclr_jax.evaluation.results import ENCODERS, Results, cell, headings


def of_encoders(results: Results) -> str:
    """Makes a table with one column per kind of features: first the baselines, then the trained encoder.

    Args:
        results: Results of one work directory.

    Returns:
        The table in Markdown, with aligned columns.
    """
    found = {(score.row, score.encoder): score for score in results.scores}
    columns = [name for name in ENCODERS if any(score.encoder == name for score in results.scores)]
    titles = headings(dict.fromkeys(score.row for score in results.scores))
    rows = [[title, *(cell(found.get((row, name))) for name in columns)] for row, title in titles.items()]
    return _aligned([['', *(ENCODERS[name] for name in columns)], *rows])


def of_workdirs(results: dict[str, Results]) -> str:
    """Makes a table with one column per work directory, for its trained encoder.

    Args:
        results: Results by the name of their work directory.

    Returns:
        The table in Markdown, with aligned columns.
    """
    found = {
        (score.row, directory): score
        for directory, part in results.items()
        for score in part.scores
        if score.encoder == 'simclr'
    }
    titles = headings(dict.fromkeys(row for row, _ in found))
    rows = [[title, *(cell(found.get((row, name))) for name in results)] for row, title in titles.items()]
    steps = [f'{directory} (step {part.step})' for directory, part in results.items()]
    return _aligned([['', *steps], *rows])


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
