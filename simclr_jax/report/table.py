"""The results table, for a terminal and as Markdown."""

from collections.abc import Iterable

from simclr_jax.evaluation import NAMES, Evaluation, Score


def markdown(evaluation: Evaluation) -> str:
    """One row a kind of features, one column a protocol and number of labels; top-1 accuracy in percent."""
    columns = list(dict.fromkeys((score.protocol, score.labels_per_class) for score in evaluation.scores))
    rows = list(dict.fromkeys(score.features for score in evaluation.scores))
    cells = {(score.features, score.protocol, score.labels_per_class): score for score in evaluation.scores}
    header = ['features', *(column_title(*column) for column in columns)]
    body = [[NAMES[row], *(_cell(cells[row, *column]) for column in columns)] for row in rows]
    return _aligned([header, *body])


def column_title(protocol: str, labels_per_class: int | None) -> str:
    """Heading of a column: the protocol and from how many labels it learns."""
    labels = 'all labels' if labels_per_class is None else f'{labels_per_class} a class'
    return f'{protocol}, {labels}'


def _cell(score: Score) -> str:
    text = f'{100 * score.top1:.1f}'
    return text if score.labels_per_class is None else f'{text} ± {100 * score.deviation:.1f}'


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
