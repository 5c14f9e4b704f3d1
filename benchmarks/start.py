"""Measures seconds from the command to the first logged step, without and with compiled programs.

python benchmarks/start.py --repeats 5 -- --config=configs/cifar10.py:cpu --config.data.path=TFDS_DATA_DIR

Everything after `--` goes to `simclr train`. Each run has a new work directory. The first run finds an empty cache, the
others find the programs that it has compiled. Prints one JSON line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np


def main():
    """Times one run after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=5, help='runs with compiled programs')
    parser.add_argument('arguments', nargs='+', help='arguments of simclr train')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        first, *later = (seconds_to_first_step(options.arguments, cache) for _ in range(1 + options.repeats))
    figures = {'seconds': round(float(np.median(later)), 1), 'all': [round(seconds, 1) for seconds in later]}
    print(json.dumps(figures | {'seconds_without_compiled_programs': round(first, 1)}))


def seconds_to_first_step(arguments, cache):
    """Measures one run up to its first step, then ends it."""
    variables = {name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}
    with tempfile.TemporaryDirectory() as folder:
        short = '--config.train_steps=1', '--config.log_every_steps=1', '--config.knn.every_epochs=0'
        command = [sys.executable, '-m', 'simclr_jax', 'train', *arguments, *short, f'--workdir={folder}/run']
        start = time.perf_counter()
        with subprocess.Popen(
            command, env={**variables, 'XDG_CACHE_HOME': cache}, stdout=subprocess.PIPE, text=True
        ) as process:
            for line in process.stdout:
                if line.startswith('step 1/1'):
                    return time.perf_counter() - start
    raise SystemExit('the run ended before its first step')


if __name__ == '__main__':
    main()
