"""Pretrain an encoder without labels. To resume an interrupted run, give the same command again.

Examples:
  simclr train --config=configs/digits.py --workdir=runs/digits
  simclr train --config=configs/cifar10.py:r18 --workdir=runs/cifar10 --config.loss.temperature=0.2

--config.FIELD=VALUE sets any field of the configuration. `simclr config` prints all fields with their meaning. A list
has commas between its members. A member with a comma in it needs quotes. The configuration file is Python code and is
executed, so use only files that you trust.

Several processes train together if a scheduler or environment variables describe them as one job (see launch/).

SIGTERM, SIGHUP and Ctrl-C make the run save a checkpoint and end. The same command then resumes it. The exit code is 42
after SIGTERM and SIGHUP, so that the launchers restart the run, and 1 after Ctrl-C. A second signal ends it at once.
"""

import argparse

from simclr_jax.cli.options import needed_path

NAME = 'train'
SUMMARY = 'pretrain an encoder'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument(
        '--config', required=True, metavar='FILE[:ARG]', help='configuration file, such as configs/cifar10.py:r18'
    )
    parser.add_argument(
        '--workdir', required=True, type=needed_path, metavar='DIR', help='directory of the run, local or gs://'
    )
    parser.add_argument(
        '--allow-config-change',
        action='store_true',
        help='continue a run of another configuration in its work directory',
    )
    parser.add_argument(
        '--profile',
        type=_steps,
        metavar='FIRST[:LAST]',
        help='steps to profile, counted from 1. The profile is in DIR/profile, for TensorBoard and xprof',
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
    """Reads the configuration and trains. Returns the exit code."""
    from simclr_jax import distributed
    from simclr_jax.config import load_config
    from simclr_jax.pretraining import pretrain

    config = load_config(options.config, options.overrides)
    distributed.start()
    pretrain(config, options.workdir, allow_change=options.allow_config_change, profile_steps=options.profile)
    return 0
