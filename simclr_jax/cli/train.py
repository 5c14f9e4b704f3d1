"""Pretrain an encoder without labels. The same command again resumes where it stopped.

  simclr train --config=configs/cifar10.py:r18 --workdir=runs/cifar10 --config.loss.temperature=0.2

Every field of the configuration (simclr_jax/config.py) can be set as --config.FIELD=VALUE.
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


def run(options: argparse.Namespace) -> int:
    """Reads the configuration, makes sure that the directory is its own, and trains."""
    from simclr_jax.config import load_config
    from simclr_jax.pretraining import pretrain

    config = load_config(options.config, options.overrides)
    pretrain(config, options.workdir, allow_change=options.allow_config_change)
    return 0
