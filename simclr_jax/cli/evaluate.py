"""Measure a trained encoder: kNN and logistic regression on its frozen features.

  simclr evaluate --workdir=runs/digits --labels=1,5,10,all --baselines=pixels,untrained

Prints the table and writes result.json, results.md and report/summary.png in the work directory.
"""

import argparse

NAME = 'evaluate'
SUMMARY = 'measure a trained encoder'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument('--workdir', required=True, metavar='DIR', help='of a `simclr train`')
    parser.add_argument('--protocols', default='knn,linear', metavar='LIST', help='knn, linear (default: both)')
    parser.add_argument(
        '--labels',
        default='all',
        metavar='LIST',
        help='labels a class to learn from, as 1,10,all (default: all)',
    )
    parser.add_argument(
        '--baselines', default='', metavar='LIST', help='also measure: pixels, untrained (default: none)'
    )


def run(options: argparse.Namespace) -> int:
    """Evaluates, prints the table, draws the summary."""
    protocols, labels, baselines = _choices(options)

    from etils import epath

    from simclr_jax import workdir
    from simclr_jax.evaluation import evaluate
    from simclr_jax.report import summary, table

    evaluation = evaluate(options.workdir, protocols=protocols, labels_per_class=labels, baselines=baselines)
    text = table.markdown(evaluation)
    title = f'Top-1 accuracy in %, step {evaluation.step}: {evaluation.train} -> {evaluation.test}'
    print(f'\n{title}\n\n{text}\n', flush=True)
    workdir.write_whole(epath.Path(options.workdir) / 'results.md', f'{title}\n\n{text}\n')
    print(f'Wrote result.json, results.md and {summary.draw(options.workdir, evaluation)}')
    return 0


def _choices(options: argparse.Namespace) -> tuple[list[str], list[int | None], list[str]]:
    from simclr_jax.config import ConfigError

    problems = []

    def members(option: str, text: str, allowed: tuple[str, ...]) -> list[str]:
        chosen = [part.strip() for part in text.split(',') if part.strip()]
        unknown = [part for part in chosen if part not in allowed]
        if unknown:
            names = ', '.join(allowed)
            problems.append(f'--{option}={text}: unknown {", ".join(unknown)}; there are: {names}')
        return chosen

    protocols = members('protocols', options.protocols, ('knn', 'linear'))
    baselines = members('baselines', options.baselines, ('pixels', 'untrained'))
    if not protocols and not problems:
        problems.append(f'--protocols={options.protocols}: choose at least one of knn, linear')
    labels = []
    for part in options.labels.split(','):
        if part.strip() == 'all':
            labels.append(None)
        elif part.strip().isdecimal() and int(part) > 0:
            labels.append(int(part))
        else:
            problems.append(f"--labels={options.labels}: '{part}' must be a whole number above 0, or 'all'")
    if problems:
        raise ConfigError(problems)
    return protocols, labels, baselines
