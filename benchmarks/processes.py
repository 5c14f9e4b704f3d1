"""Measures seconds of `simclr evaluate` by two processes beside one, on the same machine with the same devices.

python benchmarks/processes.py --workdir=runs/digits --repeats 3 -- --protocols=knn,linear --labels=all

Everything after `--` goes to `simclr evaluate`. Each evaluation gets a copy of the work directory without its results
and features. Prints one JSON line: seconds with the start of the processes, and their ratio in each repeat. With a
ratio above 1, two processes are faster.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
# (processes, devices of each).
LAYOUTS = ((1, 2), (2, 1))


def main():
    """Times both layouts in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', type=pathlib.Path, required=True, help='finished run to evaluate')
    parser.add_argument('--repeats', type=int, default=3, help='pairs of evaluations')
    parser.add_argument('arguments', nargs='*', help='arguments of simclr evaluate')
    options = parser.parse_args()
    pairs = [[seconds(options, *layout) for layout in LAYOUTS] for _ in range(options.repeats)]
    one, two = np.array(pairs).T
    ratios = one / two
    figures = {'seconds_of_one': one, 'seconds_of_two': two, 'one_over_two': ratios, 'median': np.median(ratios)}
    print(json.dumps({name: np.round(value, 2).tolist() for name, value in figures.items()}))


def seconds(options, processes, devices):
    """Measures one evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder, 'run')
        ignored = shutil.ignore_patterns('features', 'result*', 'report')
        shutil.copytree(options.workdir, workdir, ignore=ignored)
        launcher = [sys.executable, 'launch/processes.py', f'--processes={processes}', f'--devices={devices}']
        program = [sys.executable, '-m', 'simclr_jax', 'evaluate', f'--workdir={workdir}', *options.arguments]
        start = time.perf_counter()
        subprocess.run([*launcher, *program], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


if __name__ == '__main__':
    main()
