"""Make the images of a data set smaller once, and write them as shards that training reads fast.

Examples:
  simclr pack imagenet2012 --out=/data/imagenet256
  simclr train --config=configs/imagenet.py --config.data.source=packed --config.data.path=/data/imagenet256 ...
  simclr pack folder:/data/photos --out=/data/photos256 --side=256 --quality=90

The shorter side becomes --side pixels. Smaller JPEGs and PNGs are copied as they are. The same command again goes on
after an interruption. It needs TensorFlow, reading from a local disk does not. TensorFlow Datasets reads the shards.
"""

import argparse
import os
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from simclr_jax.cli.embed import tell_unreadable
from simclr_jax.cli.options import needed_path, path

if TYPE_CHECKING:
    from etils import epath
    from ml_collections import ConfigDict

    from simclr_jax.data.spec import Examples

NAME = 'pack'
SUMMARY = 'make the images of a data set smaller once, and write them as shards'
# Seconds and batch of the measurement at the end.
_SECONDS, _BATCH = 3.0, 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument('source', type=path, metavar='SOURCE', help='TFDS name, directory of images or .npz file')
    parser.add_argument('--out', required=True, type=needed_path, metavar='DIR', help='directory to write')
    parser.add_argument(
        '--splits', default='', metavar='LIST', help='splits, comma-separated (default: those to train and to test on)'
    )
    parser.add_argument('--side', type=int, default=256, metavar='N', help='shorter side in pixels (default: 256)')
    parser.add_argument('--quality', type=int, default=90, metavar='N', help='JPEG quality, 1 to 100 (default: 90)')
    parser.add_argument(
        '--max-unreadable',
        type=float,
        default=0.01,
        metavar='SHARE',
        help='largest share of images that are not readable and are left out (default: 0.01)',
    )
    parser.add_argument(
        '--data-dir', default='', type=path, metavar='DIR', help='directory of TFDS (default: TFDS_DATA_DIR)'
    )


def run(options: argparse.Namespace) -> int:
    """Packs the splits and tells their sizes and how fast they are read. Returns the exit code."""
    from etils import epath

    from simclr_jax.cli.bar import images_bar
    from simclr_jax.config import ConfigError, base_config
    from simclr_jax.config.paths import is_remote
    from simclr_jax.config.storage import check_reachable
    from simclr_jax.data.spec import needs_tensorflow

    problems = _problems(options)
    if problems:
        raise ConfigError(problems)
    out = epath.Path(options.out)
    check_reachable(out)
    with needs_tensorflow('simclr pack', 'pack on another machine'):
        from simclr_jax.data.packing import Packing, pack
    data = base_config().data
    how = Packing(options.side, options.quality, options.max_unreadable)
    for split, examples in _open(options, data):
        for note in examples.notes:
            print(note)
        started = time.perf_counter()
        with images_bar(examples.name, examples.size) as progress:
            index = pack(examples, out, split, how, progress)
        seconds = time.perf_counter() - started
        count, size = len(index.rows['id']), sum(index.description['sizes'])
        print(
            f'{out}, {split}: {count:,} images of {examples.name}, {examples.num_classes or "no"} classes, '
            f'{size / 2**30:.2f} GiB in {len(index.description["shards"])} shards, {size / count / 1024:.0f} KiB per '
            f'image; {seconds:,.0f} s'
        )
        tell_unreadable(index.description['unreadable'])
    if not is_remote(out):
        rate, cores = _measured_rate(out, split)
        print(f'Read from memory and decoded in random order by {cores} cores: {rate:,.0f} images/s.')
    return 0


def _problems(options: argparse.Namespace) -> list[str]:
    """Returns a message for each wrong option, before anything is read."""
    problems = []
    for name, least, most in (('side', 16, 4096), ('quality', 1, 100), ('max_unreadable', 0, 1)):
        value = getattr(options, name)
        if not least <= value <= most:
            problems.append(f'--{name.replace("_", "-")}={value}: must be from {least} to {most}')
    problems += [
        f'--splits={options.splits}: {split!r} must be letters, digits and _, for example train'
        for split in _split_names(options)
        if not re.fullmatch(r'\w+', split, re.ASCII)
    ]
    try:
        options.out.encode()
    except UnicodeEncodeError:
        from simclr_jax.config.paths import printable

        problems.append(f'--out={printable(options.out)}: the name is not UTF-8; choose another')
    return problems


def _split_names(options: argparse.Namespace) -> list[str]:
    return options.splits.split(',') if options.splits else []


def _open(options: argparse.Namespace, data: 'ConfigDict') -> 'Iterator[tuple[str, Examples]]':
    """(name, images) of each split to pack, all with the classes of the first. A folder without splits is train."""
    from simclr_jax.data.sources import align_classes, load_examples
    from simclr_jax.data.suite import resolve_split

    names = _split_names(options) or _default_splits(options)
    fields, _ = resolve_split(options.source, names[0], options.data_dir)
    data = data.copy_and_resolve_references()
    with data.unlocked():
        data.update(fields)
    first = None
    for name in names:
        examples = load_examples(data, name)
        first = first or examples
        yield name or 'train', align_classes(examples, first)


def _default_splits(options: argparse.Namespace) -> list[str]:
    """The splits to train and to test on, or '' for a folder without splits."""
    from etils import epath

    from simclr_jax.data.spec import DataError
    from simclr_jax.data.suite import resolve_dataset, resolve_split

    try:
        spec = resolve_dataset(options.source, options.data_dir)
    except DataError as error:
        fields, _ = resolve_split(options.source, '', options.data_dir)
        if fields['source'] != 'folder':
            raise DataError(f'{error}; or name the splits: --splits=train') from error
        return ['train' if (epath.Path(fields['path']) / 'train').is_dir() else '']
    return [name for name in (spec.split, spec.validation_split, spec.eval_split) if name]


def _measured_rate(out: 'epath.Path', split: str) -> tuple[float, int]:
    """Images per second that this machine reads and decodes in random order, and its cores."""
    from simclr_jax.config import base_config, with_values
    from simclr_jax.data.canvas import CanvasBatches
    from simclr_jax.data.feed import canvas_side
    from simclr_jax.data.reader import num_threads
    from simclr_jax.data.sources import load_examples

    config = with_values(base_config(), {'data.source': 'packed', 'data.path': os.fspath(out)})
    examples = load_examples(config.data, split)
    batches = CanvasBatches(examples, canvas_side(config), batch_size=_BATCH, seed=0)
    next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < _SECONDS:
        next(batches)
        count += _BATCH
    return count / (time.perf_counter() - started), num_threads()
