"""Convert a published encoder into a work directory, which evaluate, embed and train --config.init_from take.

Examples:
  simclr convert model.ckpt-250228 --out=runs/r50 --weights=ema
  simclr convert gs://simclr-checkpoints/simclrv2/pretrained/r50_1x_sk0 --out=runs/r50 --weights=base
  simclr evaluate --workdir=runs/r50 --protocols=linear --dataset=food101

SOURCE is a TensorFlow 1 checkpoint of google-research/simclr: its prefix, one of its files, or its directory. Depth,
width, selective kernels and heads are found from its variables. The network is then run in TensorFlow and here, and the
largest differences are printed. It needs TensorFlow.
"""

import argparse

from simclr_jax.cli.options import needed_path

NAME = 'convert'
SUMMARY = 'convert a published encoder into a work directory'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument('source', type=needed_path, metavar='SOURCE', help='checkpoint to convert')
    parser.add_argument('--out', required=True, type=needed_path, metavar='DIR', help='work directory to make')
    parser.add_argument(
        '--weights',
        choices=['base', 'ema'],
        default='',
        help='weights of the last step, or their moving average (default: those that are there)',
    )


def run(options: argparse.Namespace) -> int:
    """Converts, checks and writes. Returns the exit code."""
    from simclr_jax.config import ConfigError
    from simclr_jax.config.storage import check_reachable
    from simclr_jax.data.spec import needs_tensorflow
    from simclr_jax.exits import FAILURE
    from simclr_jax.interop.imported import TOLERANCE, CheckError

    for place in (options.source, options.out):
        check_reachable(place)
    with needs_tensorflow('simclr convert', 'convert on another machine'):
        from simclr_jax.interop.tf1 import find_checkpoint, read_tf1
    prefix = find_checkpoint(options.source)
    if prefix is None:
        raise ConfigError([f'{options.source}: there is no checkpoint of TensorFlow; give its prefix or its directory'])
    found = read_tf1(prefix, options.weights)
    model = found.config.model
    print(
        f'{found.origin}, step {found.step:,}: ResNet-{model.depth} x{model.width:g}, sk_ratio {model.sk_ratio}, '
        f'{found.config.head.kind} head, {found.num_classes or "no"} classes.'
    )
    print('Computing the same images with TensorFlow.')
    try:
        differences = found.check()
    except CheckError as error:
        print(error)
        return FAILURE
    for name, difference in differences.items():
        print(f'{name}: largest difference {difference:.1e} of the largest entry (allowed: {TOLERANCE:.0e})')
    found.write(options.out)
    print(f'Wrote {options.out}')
    return 0
