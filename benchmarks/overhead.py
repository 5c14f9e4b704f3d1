"""Measures the share of a run that log lines, checkpoints and the online kNN take, as one JSON line.

python benchmarks/overhead.py --config=configs/cifar10.py:cpu --config.train_steps=60 --config.log_every_steps=10 \
  --config.checkpoint_every_steps=20 --config.knn.every_epochs=0.06 --config.data.path=TFDS_DATA_DIR

Runs the pretraining in a temporary directory and times each of the three. One set of shares is that of this run. The
other is that of the run without the overrides, with the same seconds each and per step. The first of each is left
out, because it compiles. A checkpoint counts with the time for which it delays the steps. The rest of its writing
happens during the steps and is part of `step_seconds`.
"""

import argparse
import functools
import json
import tempfile
import time

import jax
import numpy as np

from simclr_jax import pretraining
from simclr_jax.build import make_schedule
from simclr_jax.config import load_config
from simclr_jax.training import loop
from simclr_jax.training.state import TrainState


def main():
    """Times one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', required=True)
    options, rest = parser.parse_known_args()
    overrides = [tuple(argument.removeprefix('--config.').split('=', 1)) for argument in rest]
    config = load_config(options.config, overrides)
    seconds = {'log': [], 'checkpoint': [], 'knn': []}
    run = {}
    loop.train = functools.partial(timed, loop.train, seconds, run)
    with tempfile.TemporaryDirectory() as directory:
        pretraining.pretrain(config, directory)
    meant = load_config(options.config)
    intervals = intervals_of(make_schedule(meant, round(run['epoch_steps'] * config.batch_size)))
    each = {name: float(np.median(times[1:])) for name, times in seconds.items()}
    spent = sum(sum(times[1:]) for times in seconds.values())
    step = (run['seconds'] - sum(map(sum, seconds.values()))) / run['steps']
    shares = {name: each[name] / (intervals[name] * step) for name in each}
    print(
        json.dumps(
            {
                'config': options.config,
                'step_seconds': round(step, 4),
                'seconds_each': {name: round(value, 4) for name, value in each.items()},
                'share_of_this_run': round(spent / (run['steps'] * step), 4),
                'every_steps': intervals,
                'share': {name: round(share, 5) for name, share in shares.items()},
                'share_together': round(sum(shares.values()), 5),
            }
        )
    )


def intervals_of(schedule):
    """Returns the steps between two log lines, checkpoints and evaluations."""
    return {'log': schedule.log_every, 'checkpoint': schedule.checkpoint_every, 'knn': schedule.evaluate_every}


def timed(train, seconds, run, state, train_step, batches_from, **options):
    """Runs `loop.train` and times log lines, checkpoints, the online kNN, and everything after the first step."""

    def clocked(function, times):
        def call(*arguments):
            # The steps that make a state may still run.
            jax.block_until_ready([argument for argument in arguments if isinstance(argument, TrainState)])
            start = time.perf_counter()
            found = function(*arguments)
            times.append(time.perf_counter() - start)
            return found

        return call

    def step(*arguments):
        found = train_step(*arguments)
        run['steps'] = run.get('steps', -1) + 1
        if run['steps'] == 0:
            found[1]['loss'].block_until_ready()
            run['start'] = time.perf_counter()
        return found

    log, checkpoints = options['log'], options['checkpoints']
    log.progress = clocked(log.progress, seconds['log'])
    checkpoints.save = clocked(checkpoints.save, seconds['checkpoint'])
    options['evaluate'] = clocked(options['evaluate'], seconds['knn'])
    state = train(state, step, batches_from, **options)
    run['seconds'] = time.perf_counter() - run['start']
    run['epoch_steps'] = options['schedule'].epoch_steps
    return state


if __name__ == '__main__':
    main()
