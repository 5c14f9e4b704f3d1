"""Convert a published encoder into a work directory, which evaluate, embed, export and train --config.init_from take.

Examples:
  simclr convert model.ckpt-250228 --out=runs/r50 --weights=ema
  simclr convert gs://simclr-checkpoints/simclrv2/pretrained/r50_1x_sk0 --out=runs/r50 --weights=base
  simclr convert resnet50.safetensors --out=runs/supervised --normalize=imagenet
  simclr evaluate --workdir=runs/r50 --protocols=linear --dataset=food101

SOURCE is one of these:
  * a TensorFlow 1 checkpoint of google-research/simclr: its prefix, one of its files, or its directory
  * the directory of a SavedModel of google-research/simclr
  * the state dict of a ResNet of torchvision, timm, lightly, solo-learn, VISSL or MoCo, of an EfficientNet or
    MobileNetV3 of torchvision, or a file of `simclr export`: .safetensors, or a pickle (.pth, .pt, .ckpt, .bin, .tar),
    which PyTorch opens as weights alone

Architecture, width and heads are found from the file. What does not fit is listed. The network is then
computed by TensorFlow or NumPy and here, and the largest differences are printed. Above 1e-4 nothing is written, and
the exit code is 1.
"""

import argparse

from simclr_jax.cli.options import needed_path

NAME = 'convert'
SUMMARY = 'convert a published encoder into a work directory'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument('source', type=needed_path, metavar='SOURCE', help='checkpoint, SavedModel or state dict')
    parser.add_argument('--out', required=True, type=needed_path, metavar='DIR', help='work directory to make')
    parser.add_argument(
        '--weights',
        choices=['base', 'ema'],
        default='',
        help='weights of the last step, or their moving average (default: those that are there)',
    )
    parser.add_argument(
        '--normalize',
        default='',
        metavar='HOW',
        help='PyTorch: normalisation of the images that the network was trained on: none, imagenet, or three means and '
        'three deviations (default: what the file says)',
    )
    parser.add_argument(
        '--pool',
        choices=['symmetric', 'same'],
        default='',
        help="PyTorch: max pooling with PyTorch's or TensorFlow's padding (default: what the file says, or PyTorch's)",
    )
    parser.add_argument(
        '--stem-padding',
        type=int,
        choices=[1, 2],
        help='PyTorch: padding of a first convolution of 3x3, 2 in solo-learn (default: what the file says)',
    )


def run(options: argparse.Namespace) -> int:
    """Converts, checks and writes. Returns the exit code."""
    from simclr_jax.exits import FAILURE
    from simclr_jax.interop.convert import convert
    from simclr_jax.interop.imported import CheckError

    try:
        convert(
            options.source,
            options.out,
            weights=options.weights,
            normalize=options.normalize,
            pool=options.pool,
            stem_padding=options.stem_padding,
        )
    except CheckError as error:
        print(error)
        return FAILURE
    print(f'Wrote {options.out}')
    return 0
