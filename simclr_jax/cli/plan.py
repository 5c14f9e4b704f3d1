"""Estimate memory and time of a pretraining on a TPU slice, without that slice, by compiling its training step.

Examples:
  simclr plan --config=configs/imagenet.py --topology=v5e:4x8
  simclr plan --config=configs/imagenet.py --topology=v4:2x4x4 --largest-batch --json=plan.json
  simclr plan --config=configs/digits.py                         # devices of this machine

The plan shows whether the step fits in memory, the memory by kind, operations, memory traffic, collectives and the
costliest parts. It estimates seconds per step and hours per run. A compilation takes one to ten minutes and allocates
nothing on the devices. The first plan for a TPU installs the TPU compiler (libtpu) in its own directory.

--config.FIELD=VALUE sets any field of the configuration. `simclr config` prints all fields with their meaning. The
configuration file is Python code and is executed, so use only files that you trust.
"""

import argparse
import functools
import json
import os

from simclr_jax.cli.options import path

NAME = 'plan'
SUMMARY = 'estimate memory and time of a pretraining on a TPU slice'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument('--config', required=True, metavar='FILE[:ARG]', help='configuration file, as for train')
    parser.add_argument(
        '--topology',
        default='',
        metavar='SLICE',
        help='TPU slice, such as v5e:4x8 or v4:2x4x4 (default: the devices of this machine)',
    )
    parser.add_argument(
        '--images', type=int, default=0, metavar='N', help='images of the training split (default: read the data)'
    )
    parser.add_argument(
        '--largest-batch',
        action='store_true',
        help='also search for the largest batch, in up to four more compilations',
    )
    parser.add_argument('--json', default='', type=path, metavar='FILE', help='also write the plan to this JSON file')


def run(options: argparse.Namespace) -> int:
    """Makes the plan and prints it. Returns the exit code."""
    from etils import epath

    from simclr_jax.config import ConfigError, load_config
    from simclr_jax.config.paths import is_remote
    from simclr_jax.config.whole_file import write_whole
    from simclr_jax.planning import report
    from simclr_jax.planning.plan import make_plan, training_data
    from simclr_jax.planning.topology import parse_topology

    if options.images < 0:
        raise ConfigError([f'--images={options.images}: must be 1 or more'])
    target = epath.Path(options.json)
    if options.json and not is_remote(target) and not target.parent.is_dir():
        raise ConfigError([f'--json={target}: there is no directory {target.parent}; make it first'])
    is_writable = is_remote(target) or os.access(target.parent, os.W_OK | os.X_OK)
    if options.json and (target.is_dir() or not is_writable):
        raise ConfigError([f'--json={target}: this file cannot be written; choose another'])
    topology = parse_topology(options.topology) if options.topology else None
    config = load_config(options.config, options.overrides)
    num_images, num_classes = training_data(config, options.images)
    plan = make_plan(
        config,
        topology,
        num_images=num_images,
        num_classes=num_classes,
        search=options.largest_batch,
        say=functools.partial(print, flush=True),
    )
    print(f'\n{report.as_text(plan)}')
    if options.json:
        write_whole(target, json.dumps(report.as_dict(plan), indent=2) + '\n')
        print(f'\nWrote {target}')
    return 0
