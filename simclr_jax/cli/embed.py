"""Features of images by a trained encoder, as a file for other programs; and the nearest neighbours of some.

  simclr embed --workdir=runs/cifar10 --out=cifar10.npz
  simclr embed --workdir=runs/photos --dataset=/data/other_photos --out=other.parquet --neighbours=cat.jpg,dog.jpg

An .npz holds features [N, F], labels and ids, a .parquet file one row an image. Labels are not needed. Files that
are no images are named and left out.
"""

import argparse
import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator

NAME = 'embed'
SUMMARY = 'write the features of images, find nearest neighbours'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument('--workdir', required=True, metavar='DIR', help='of a `simclr train`')
    parser.add_argument(
        '--dataset',
        default='',
        metavar='NAME',
        help="TFDS name, a directory of images or an .npz (default: the pretraining's)",
    )
    parser.add_argument('--split', default='', metavar='NAME', help='(default: test, or all where there are no splits)')
    parser.add_argument('--out', required=True, metavar='FILE', help='ends in .npz or .parquet')
    parser.add_argument('--overwrite', action='store_true', help='replace files that are there already')
    parser.add_argument('--layer', default='h', metavar='NAME', help='h, or pooled maps: feature1 to feature5')
    parser.add_argument('--neighbours', default='', metavar='LIST', help='image files or ids: draw what is nearest')
    parser.add_argument('--k', type=int, default=8, metavar='N', help='neighbours of each (default: 8)')
    parser.add_argument('--picture', default='', metavar='FILE', help='of the neighbours (default: FILE.png of --out)')
    parser.add_argument('--image-size', type=int, default=0, metavar='N', help="pixels (default: the pretraining's)")
    parser.add_argument(
        '--batch-size', type=int, default=0, metavar='N', help="images at a time (default: the pretraining's)"
    )


def run(options: argparse.Namespace) -> int:
    """Embeds the images, writes the file, draws the neighbours."""
    from etils import epath

    from simclr_jax import distributed
    from simclr_jax.config import ConfigError
    from simclr_jax.evaluation import embed
    from simclr_jax.evaluation.extractor import open_extractor
    from simclr_jax.report import neighbours

    out = epath.Path(options.out)
    names = [name.strip() for name in options.neighbours.split(',') if name.strip()]
    picture = epath.Path(options.picture) if options.picture else out.with_suffix('.png')
    problems = _problems(options, out, picture if names else None)
    if problems:
        raise ConfigError(problems)

    distributed.start()
    encoder, step = open_extractor(options.workdir, image_size=options.image_size, batch_size=options.batch_size)
    examples = embed.open_split(encoder.config.data, options.dataset, options.split)
    distributed.say(f'Step {step} of {options.workdir}; {examples.name}, {examples.size:,} images.')
    queries = neighbours.open_queries(names, examples, encoder, options.layer)
    started = time.perf_counter()
    with _progress(examples.size) as progress:
        found = embed.embed(encoder, examples, options.layer, progress)
    seconds = time.perf_counter() - started
    if not distributed.is_first():
        return 0
    _tell_unreadable(embed.unreadable(found, examples))
    embed.write(out, found, examples)
    count, width = found.values.shape
    rate, size = count / seconds, out.stat().length / 2**20
    print(f'{count:,} features of {width} values, {rate:,.0f} images/s; wrote {out}, {size:.1f} MiB')
    if queries:
        neighbours.draw(picture, queries, examples, found, options.k)
        print(f'Wrote {picture}')
    return 0


def _problems(options: argparse.Namespace, out, picture) -> list[str]:
    """What is wrong with the options, as far as can be seen before anything is read; `picture` None: not asked for."""
    from simclr_jax.config.evaluation import LAYERS
    from simclr_jax.evaluation.embed import ENDINGS

    problems = []
    if options.layer not in LAYERS:
        problems.append(f'--layer={options.layer}: unknown; there are: {", ".join(LAYERS)}')
    for option, least in (('k', 1), ('image_size', 0), ('batch_size', 0)):
        if getattr(options, option) < least:
            name = option.replace('_', '-')
            problems.append(f'--{name}={getattr(options, option)}: must be {least} or more')
    if options.picture and picture is None:
        problems.append(f'--picture={options.picture}: shows neighbours; add --neighbours=IMAGE,IMAGE')
    if out.suffix == '.parquet' and importlib.util.find_spec('pyarrow') is None:
        problems.append(f'--out={out}: Parquet needs pyarrow; pip install pyarrow, or write an .npz')
    for name, path, endings in (('out', out, ENDINGS), ('picture', picture, ('.png',))):
        if path is None:
            continue
        if path.suffix not in endings:
            problems.append(f'--{name}={path}: must end in {" or ".join(endings)}')
        elif not path.parent.is_dir():
            problems.append(f'--{name}={path}: there is no directory {path.parent}; make it first')
        elif path.exists() and not options.overwrite:
            problems.append(f'--{name}={path}: is there already; choose another, or replace it with --overwrite')
    return problems


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere; yields what is to be called with numbers of images done."""
    from rich import progress

    columns = (
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn('{task.fields[rate]:,.0f} images/s'),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as display:
        task = display.add_task('', total=total, rate=0.0)
        started, done = time.perf_counter(), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            display.update(task, completed=done, rate=done / (time.perf_counter() - started))

        yield advance


def _tell_unreadable(paths: list[str]) -> None:
    """Names the files that were left out, not more than fit a screen."""
    if not paths:
        return
    shown = paths[:20]
    print(f'{len(paths)} files are no readable images, and were left out:')
    print(*(f'  {path}' for path in shown), sep='\n')
    if len(paths) > len(shown):
        print(f'  and {len(paths) - len(shown)} more')
