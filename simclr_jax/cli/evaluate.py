"""Measure a trained encoder by any protocol on any data set, or compare the results of several encoders.

Examples:
  simclr evaluate --workdir=runs/digits --labels=1,5,10,all --baselines=pixels,untrained
  simclr evaluate --workdir=runs/cifar10 --protocols=linear --dataset=fashion_mnist,folder:my_images
  simclr evaluate --workdir=runs/imagenet --config=configs/evaluate/imagenet.py:v2,labels=1%
  simclr evaluate --compare runs/a runs/b

Protocols on frozen features:
  knn         vote of the nearest neighbours
  linear      logistic regression by L-BFGS
  svm         linear support vector machine
  low_shot    linear support vector machine on few examples per class
Protocols that train on augmented images:
  linear_sgd  linear classifier
  finetune    classifier and encoder
  multihead   linear classifiers on all stages of the encoder
Without labels:
  measures    alignment, uniformity, effective rank, agreement of neighbours

--config.FIELD=VALUE sets any field of the configuration. `simclr config --evaluation` prints all fields with their
meaning. The configuration file is Python code and is executed, so use only files that you trust.

A list has commas between its members. A path with a comma in it needs quotes: --dataset='"folder:/data/a,b",cifar10'.

The command prints a table. It writes result.json, results.md and report/summary.png in the work directory.
"""

import argparse

from simclr_jax.cli.options import needed_path

NAME = 'evaluate'
SUMMARY = 'measure a trained encoder, or compare several encoders'
# Options that set fields of the configuration: option -> field.
SHORT = {'protocols': 'protocols', 'dataset': 'datasets', 'labels': 'labels', 'baselines': 'baselines'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument('--workdir', type=needed_path, metavar='DIR', help='work directory of a `simclr train`')
    parser.add_argument(
        '--config', default='', metavar='FILE[:ARG]', help='configuration file, such as configs/evaluate/transfer.py'
    )
    parser.add_argument('--protocols', metavar='LIST', help='protocols, see above (default: knn,linear)')
    parser.add_argument(
        '--dataset',
        metavar='LIST',
        help='data sets: TFDS names, folder:PATH, .npz files (default: data of the pretraining)',
    )
    parser.add_argument(
        '--labels', metavar='LIST', help='labels to learn from: all, 10 (per class), 1%% (default: all)'
    )
    parser.add_argument(
        '--baselines', metavar='LIST', help='features to compare with: pixels, untrained (default: none)'
    )
    parser.add_argument(
        '--compare',
        nargs='+',
        type=needed_path,
        metavar='DIR',
        help='compare the results of these work directories',
    )


def run(options: argparse.Namespace) -> int:
    """Evaluates one work directory, or compares several. Returns the exit code."""
    from simclr_jax.config import ConfigError

    if bool(options.workdir) == bool(options.compare):
        raise ConfigError(
            ['give either --workdir=DIR, to evaluate an encoder, or --compare DIR DIR, to compare results']
        )
    return _compare(options.compare) if options.compare else _evaluate(options)


def _evaluate(options: argparse.Namespace) -> int:
    from etils import epath

    from simclr_jax import distributed
    from simclr_jax.config import load_evaluation
    from simclr_jax.evaluation.run import evaluate
    from simclr_jax.report import summary, table
    from simclr_jax.training import workdir

    given = [(field, getattr(options, option)) for option, field in SHORT.items()]
    config = load_evaluation(options.config, [*((f, t) for f, t in given if t is not None), *options.overrides])
    distributed.start(saves=False)
    results = evaluate(config, options.workdir, say=distributed.say)
    if not distributed.is_first():
        return 0
    text = table.of_encoders(results)
    title = f'Results of step {results.step} (%, with 95 % intervals over test images or ± deviation over draws)'
    print(f'\n{title}\n\n{text}\n', flush=True)
    markdown = table.of_encoders(results, markdown=True)
    workdir.write_whole(epath.Path(options.workdir) / 'results.md', f'{title}\n\n{markdown}\n')
    print(f'Wrote result.json, results.md and {summary.draw(options.workdir, results)}')
    return 0


def _compare(directories: list[str]) -> int:
    from simclr_jax.config import ConfigError
    from simclr_jax.evaluation.results import read_results
    from simclr_jax.report import table

    found = {directory: read_results(directory) for directory in directories}
    results = {directory: result for directory, result in found.items() if result is not None}
    missing = [directory for directory in found if directory not in results]
    if missing:
        raise ConfigError(
            [f'{directory} has no result.json; run: simclr evaluate --workdir={directory}' for directory in missing]
        )
    print(table.of_workdirs(results))
    return 0
