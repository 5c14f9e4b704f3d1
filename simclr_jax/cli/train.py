"""Pretrain an encoder without labels. The same command again resumes where it stopped.

  simclr train --config=configs/cifar10.py:r18 --workdir=runs/cifar10 --config.loss.temperature=0.2

Every field of the configuration (simclr_jax/config/pretraining.py) can be set as --config.FIELD=VALUE.

Where a scheduler or environment says that there are several processes (launch/), they train together. SIGTERM saves
and exits with 42: the same command goes on.
"""

import argparse

NAME = 'train'
SUMMARY = 'pretrain an encoder'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument(
        '--config', required=True, metavar='FILE[:ARG]', help='configuration, as configs/cifar10.py:r18'
    )
    parser.add_argument('--workdir', required=True, metavar='DIR', help='where the run lives, local or gs://')
    parser.add_argument(
        '--allow-config-change',
        action='store_true',
        help='go on in a work directory of another configuration',
    )
    parser.add_argument(
        '--profile',
        type=_steps,
        metavar='FIRST[:LAST]',
        help="steps, counted from 1, whose profile is written to the directory's profile/ (TensorBoard, xprof)",
    )


def _steps(text: str) -> tuple[int, int]:
    first, _, last = text.partition(':')
    try:
        steps = int(first), int(last or first)
    except ValueError:
        steps = 0, 0
    if not 1 <= steps[0] <= steps[1]:
        raise argparse.ArgumentTypeError(f"'{text}' must be FIRST:LAST with 1 <= FIRST <= LAST, for example 10:12")
    return steps


def run(options: argparse.Namespace) -> int:
    """Reads the configuration, makes sure that the directory is its own, and trains."""
    from simclr_jax import distributed
    from simclr_jax.config import load_config
    from simclr_jax.pretraining import pretrain

    config = load_config(options.config, options.overrides)
    distributed.start()
    pretrain(config, options.workdir, allow_change=options.allow_config_change, profile_steps=options.profile)
    return 0
