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
Training on images with masks (--config.segmentation.images= and .masks=, or .tfds=):
  segmentation  fully convolutional head, and encoder
The classifier that the run itself has trained (a distilled student, or the probe):
  classifier  its accuracy
Without labels:
  measures    alignment, uniformity, effective rank, agreement of neighbours

--config.FIELD=VALUE sets any field of the configuration. `simclr config --evaluation` prints all fields with their
meaning. The configuration file is Python code and is executed, so use only files that you trust.

A list has commas between its members. A path with a comma in it needs quotes: --dataset='"folder:/data/a,b",cifar10'.

The command prints a table. It writes result.json, results.md and report/summary.png in the work directory, and for
segmentation also report/segmentation.png.
"""

import argparse
import errno

from simclr_jax.cli.options import needed_path

NAME = 'evaluate'
SUMMARY = 'measure a trained encoder, or compare several encoders'
# Errors of a disk without room.
FULL = (errno.ENOSPC, errno.EDQUOT)
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
    from simclr_jax import distributed
    from simclr_jax.cli.bar import images_bar
    from simclr_jax.config import load_evaluation
    from simclr_jax.evaluation.masked_datasets import Predictions
    from simclr_jax.evaluation.run import evaluate
    from simclr_jax.report import table

    given = [(field, getattr(options, option)) for option, field in SHORT.items()]
    config = load_evaluation(options.config, [*((f, t) for f, t in given if t is not None), *options.overrides])
    distributed.start(saves=False)
    shown: list[Predictions] = []
    results = evaluate(config, options.workdir, say=distributed.say, progress=images_bar, show=shown.append)
    if not distributed.is_first():
        return 0
    title = f'Results of step {results.step} (%, with 95 % intervals over test images or ± deviation over draws)'
    print(f'\n{title}\n\n{table.of_encoders(results)}\n', flush=True)
    if results.not_kept:
        return _end_without_files(options.workdir, results.not_kept)
    markdown = table.of_encoders(results, markdown=True)
    _write_files(options.workdir, results, f'{title}\n\n{markdown}\n', shown)
    return 0


def _end_without_files(directory: str, error: Exception) -> int:
    """Ends after the table. A full disk is an error, and a directory that others own is none."""
    if isinstance(error, OSError) and error.errno in FULL:
        raise error
    print(f'Nothing is kept in {directory}.')
    return 0


def _write_files(directory: str, results, markdown: str, shown: list) -> None:
    """Writes results.md and the pictures. Where one cannot be written, a line says so.

    Raises:
        OSError: The disk is full.
    """
    from etils import epath

    from simclr_jax.config.whole_file import write_whole
    from simclr_jax.report import segmentation, summary
    from simclr_jax.training.workdir import clear_place

    place = epath.Path(directory)
    table, picture, segmented = (place / name for name in ('results.md', 'report/summary.png', segmentation.PICTURE))
    clear_place(picture.parent, print, of_directory=True)
    written = ['result.json']
    writers = {table: lambda: write_whole(table, markdown), picture: lambda: summary.draw(directory, results)}
    if shown:
        writers[segmented] = lambda: segmentation.draw(directory, shown)
    for path, write in writers.items():
        try:
            clear_place(path, print)
            write()
        except OSError as error:
            if error.errno in FULL:
                raise
            print(f'{path} cannot be written ({error.strerror or error}).')
        else:
            written.append(path.name if path == table else str(path))
    print(f'Wrote {", ".join(written[:-1])} and {written[-1]}' if len(written) > 1 else f'Wrote {written[0]}')


def _compare(directories: list[str]) -> int:
    from simclr_jax.config import ConfigError
    from simclr_jax.evaluation.result_file import read_results
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
