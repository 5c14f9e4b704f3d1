"""What a pretraining needs on a TPU slice that is not here: compiles its very step, and estimates its time.

  simclr plan --config=configs/imagenet.py --topology=v5e:4x8
  simclr plan --config=configs/imagenet.py --topology=v4:2x4x4 --largest-batch --json=plan.json
  simclr plan --config=configs/digits.py                         # for the devices of this machine

Tells whether the step fits, memory by kind, operations, traffic, collectives, the costliest parts, seconds a step
and hours a run. A compilation takes one to ten minutes; nothing is allocated. The TPU compiler (libtpu) is
installed once, in a directory of its own. Every field of the configuration can be set as --config.FIELD=VALUE.
"""

import argparse
import functools
import json
import pathlib

NAME = 'plan'
SUMMARY = 'what a pretraining needs on a TPU slice, and how long it takes'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument('--config', required=True, metavar='FILE[:ARG]', help='configuration, as for train')
    parser.add_argument(
        '--topology', default='', metavar='SLICE', help='v5e:4x8, v4:2x4x4, ... (default: the devices of this machine)'
    )
    parser.add_argument('--images', type=int, default=0, metavar='N', help='of the training split (default: look)')
    parser.add_argument('--largest-batch', action='store_true', help='also search for it: up to four more compilations')
    parser.add_argument('--json', default='', metavar='FILE', help='write everything there as well')


def run(options: argparse.Namespace) -> int:
    """Makes the plan and prints it."""
    from simclr_jax.config import ConfigError, load_config
    from simclr_jax.planning import report
    from simclr_jax.planning.plan import make_plan, training_data
    from simclr_jax.planning.topology import parse_topology

    if options.images < 0:
        raise ConfigError([f'--images={options.images}: must be 1 or more'])
    target = pathlib.Path(options.json)
    if options.json and not target.parent.is_dir():
        raise ConfigError([f'--json={target}: there is no directory {target.parent}; make it first'])
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
        target.write_text(json.dumps(report.as_dict(plan), indent=2) + '\n')
        print(f'\nWrote {target}')
    return 0
