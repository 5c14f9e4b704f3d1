"""Write the features of images to a file for other programs, and draw nearest neighbours.

Examples:
  simclr embed --workdir=runs/cifar10 --out=cifar10.npz
  simclr embed --workdir=runs/photos --dataset=/data/other_photos --out=other.parquet --neighbours=cat.jpg,dog.jpg

An .npz file holds the arrays features [N, F], labels [N] (or [N, K] if an image has several), ids [N] and index [N].
A .parquet file holds one row per image. The images need no labels. The command lists files that it cannot read as
images and leaves them out. An image file with a comma in its name needs quotes: --neighbours='"a,b.jpg",c.jpg'.
"""

import argparse
import importlib.util
import os
import time

from simclr_jax.cli.options import needed_path, path

NAME = 'embed'
SUMMARY = 'write the features of images to a file, and draw nearest neighbours'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument(
        '--workdir', required=True, type=needed_path, metavar='DIR', help='work directory of a `simclr train`'
    )
    parser.add_argument(
        '--dataset',
        default='',
        type=path,
        metavar='NAME',
        help='TFDS name, directory of images or .npz file (default: data of the pretraining)',
    )
    parser.add_argument(
        '--split',
        default='',
        metavar='NAME',
        help='split of the data set (default: test, or all images without splits)',
    )
    parser.add_argument(
        '--out', required=True, type=needed_path, metavar='FILE', help='file to write, *.npz or *.parquet'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace existing files')
    parser.add_argument(
        '--layer',
        default='h',
        metavar='NAME',
        help='features: h (default), or the pooled maps feature1 (stem), feature2, ...',
    )
    parser.add_argument(
        '--neighbours', default='', metavar='LIST', help='image files or ids, comma-separated, whose neighbours to draw'
    )
    parser.add_argument('--k', type=int, default=8, metavar='N', help='number of neighbours to draw (default: 8)')
    parser.add_argument(
        '--picture',
        default='',
        type=path,
        metavar='FILE',
        help='picture of the neighbours (default: the name of --out with .png)',
    )
    parser.add_argument(
        '--image-size',
        type=int,
        default=0,
        metavar='N',
        help='size of the images in pixels (default: as in pretraining)',
    )
    parser.add_argument(
        '--batch-size', type=int, default=0, metavar='N', help='images per batch (default: as in pretraining)'
    )


def run(options: argparse.Namespace) -> int:
    """Embeds the images, writes the file and draws the neighbours. Returns the exit code."""
    from etils import epath

    from simclr_jax import distributed
    from simclr_jax.cli.bar import images_bar
    from simclr_jax.config import ConfigError
    from simclr_jax.config.overrides import split_list
    from simclr_jax.config.paths import user_path
    from simclr_jax.evaluation import embed
    from simclr_jax.evaluation.extractor import open_extractor
    from simclr_jax.report import neighbours

    out = epath.Path(options.out)
    names = [user_path(name) for name in split_list(options.neighbours) if name]
    picture = epath.Path(options.picture) if options.picture else out.with_suffix('.png')
    problems = _problems(options, out, picture if names else None)
    if problems:
        raise ConfigError(problems)

    distributed.start(saves=False)
    encoder, step = open_extractor(options.workdir, image_size=options.image_size, batch_size=options.batch_size)
    examples = embed.open_split(encoder.config.data, options.dataset, options.split)
    distributed.say(f'Step {step} of {options.workdir}; {examples.name}, {examples.size:,} images.')
    for note in examples.notes:
        distributed.say(note)
    queries = neighbours.open_queries(names, examples, encoder, options.layer)
    started = time.perf_counter()
    with images_bar(examples.name, examples.size) as progress:
        found = embed.embed(encoder, examples, options.layer, progress)
    seconds = time.perf_counter() - started
    if not distributed.is_first():
        return 0
    tell_unreadable(embed.unreadable(found, examples))
    embed.write(out, found, examples)
    count, width = found.values.shape
    rate, size = count / seconds, _bytes_of(out) / 2**20
    print(f'{count:,} features of {width} values, {rate:,.0f} images/s; wrote {out}, {size:.1f} MiB')
    if queries:
        neighbours.draw(picture, queries, examples, found, options.k)
        print(f'Wrote {picture}')
    return 0


def _problems(options: argparse.Namespace, out, picture) -> list[str]:
    """Returns a message for each wrong option, before anything is read.

    Args:
        options: Options of the command line.
        out: File of the features.
        picture: File of the picture, None if there are no neighbours to draw.
    """
    from simclr_jax.config.evaluation import LAYERS, is_layer
    from simclr_jax.config.paths import is_remote
    from simclr_jax.config.storage import check_reachable
    from simclr_jax.evaluation.embed import ENDINGS

    problems = []
    if not is_layer(options.layer):
        problems.append(f'--layer={options.layer}: unknown; choose from {", ".join(LAYERS)}')
    for option, least in (('k', 1), ('image_size', 0), ('batch_size', 0)):
        if getattr(options, option) < least:
            name = option.replace('_', '-')
            problems.append(f'--{name}={getattr(options, option)}: must be {least} or more')
    if options.picture and picture is None:
        problems.append(f'--picture={options.picture}: only neighbours are drawn; add --neighbours=IMAGE,IMAGE')
    if out.suffix == '.parquet' and importlib.util.find_spec('pyarrow') is None:
        problems.append(f'--out={out}: a .parquet file needs pyarrow; pip install pyarrow, or write an .npz file')
    for name, file, endings in (('out', out, ENDINGS), ('picture', picture, ('.png',))):
        if file is None:
            continue
        check_reachable(file)
        if file.suffix not in endings:
            problems.append(f'--{name}={file}: must end in {" or ".join(endings)}')
        elif not is_remote(file) and not file.parent.is_dir():
            problems.append(f'--{name}={file}: there is no directory {file.parent}; make it first')
        elif not is_remote(file) and not os.access(file.parent, os.W_OK | os.X_OK):
            problems.append(f'--{name}={file}: you may not write to {file.parent}; choose another directory')
        elif file.is_dir():
            problems.append(f'--{name}={file}: this is a directory; choose another name')
        elif file.exists() and not options.overwrite:
            problems.append(f'--{name}={file}: the file exists; choose another, or replace it with --overwrite')
    return problems


def _bytes_of(file) -> int:
    from simclr_jax.config.paths import is_remote

    # `epath` asks for the names of owner and group, which need not exist.
    return file.stat().length if is_remote(file) else os.path.getsize(file)


def tell_unreadable(paths: list[str]) -> None:
    """Lists the files that were left out, as many as fit on a screen.

    Args:
        paths: Their paths, or other ids of images.
    """
    if not paths:
        return
    from simclr_jax.config.paths import printable

    shown = paths[:20]
    print(f'{len(paths)} files could not be read as images and were left out:')
    print(*(f'  {printable(name)}' for name in shown), sep='\n')
    if len(paths) > len(shown):
        print(f'  and {len(paths) - len(shown)} more')
