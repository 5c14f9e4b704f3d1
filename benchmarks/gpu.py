"""Measures everything about one GPU, this package and PyTorch in turn. It needs no TensorFlow.

python benchmarks/gpu.py --peer 'PYTHON peer_step.py' --cifar 'DIR/cifar10_{split}_jpeg.npz' --out DIR [--minutes 10]
python benchmarks/gpu.py --small ...     # the same commands with tiny networks, to try the script on a CPU

Each part is a command of its own with a limit, and prints a JSON line when it ends: what it measured, or why not. All
lines are also written to DIR/gpu.jsonl as they come. What does not fit in the minutes is left out, and named. Compiled
programs are kept in DIR: the first step of the second part is that of a later run.
"""

import argparse
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
CONFIGS = HERE.parent / 'configs'


def main():
    """Runs the parts, the most telling first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', required=True, type=pathlib.Path, help='directory for results and compiled programs')
    parser.add_argument('--peer', help='command of the peer, without its options')
    parser.add_argument('--cifar', help="CIFAR-10 as arrays, with '{split}' in the name")
    parser.add_argument('--minutes', type=float, default=10)
    parser.add_argument('--small', action='store_true', help='tiny networks and batches')
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    for name, command, limit in parts(options):
        left = end - time.monotonic()
        found = run(command, min(limit, left), options.out) if left > 5 else {'left out': 'no time'}
        line = json.dumps({'part': name, **found})
        print(line, flush=True)
        with open(options.out / 'gpu.jsonl', 'a') as file:
            file.write(line + '\n')


def parts(options):
    """(name, command, most seconds) of each part. Parts that share a program stand behind each other."""
    small = options.small
    resnet50 = f'--config={CONFIGS}/imagenet.py --batch-size={8 if small else 256}'
    resnet18 = f'--config={CONFIGS}/cifar10.py:r18 --batch-size={8 if small else 512}'
    if small:
        resnet50 += ' --config.model.depth=10 --config.model.width=0.0625 --config.data.image_size=32'
        resnet18 += ' --config.model.depth=10 --config.model.width=0.0625'
    steps, repeats = (2, 1) if small else (30, 3)
    timed = f'{sys.executable} {HERE}/train_step.py --steps={steps} --repeats={repeats}'
    with_peer = [] if not options.peer else [f'--peer={options.peer} {text}' for text in peers(small, steps)]
    yield 'resnet50 hybrid', [*timed.split(), *resnet50.split(), '--feed=hybrid', *with_peer[:1]], 240
    again = ['--feed=hybrid', '--steps=1', '--repeats=1']
    yield 'resnet50 hybrid, its programs compiled before', [*timed.split(), *resnet50.split(), *again], 120
    yield 'resnet50 decoded', [*timed.split(), *resnet50.split(), '--feed=decoded'], 150
    yield 'resnet18', [*timed.split(), *resnet18.split(), '--feed=hybrid', *with_peer[1:]], 180
    if options.cifar:
        train = f'{sys.executable} -m simclr_jax train --config={CONFIGS}/cifar10.py:r18 --config.data.source=arrays'
        tiny = '--config.model.depth=10 --config.model.width=0.0625' if small else '--config.model.dtype=bfloat16'
        length = f'--config.batch_size={64 if small else 512} --config.train_steps={4 if small else 1500}'
        data = ['--config.data.eval_split=test', '--config.data.feed=resident', f'--config.data.path={options.cifar}']
        run = [f'--workdir={options.out}/cifar-{os.getpid()}', '--config.knn.every_epochs=1000']
        yield 'cifar10 in the loop', [*train.split(), *tiny.split(), *length.split(), *data, *run], 200


def peers(small, steps):
    """Options of the peer for both networks."""
    compiled = '' if small else '--compile'
    large = '--arch resnet18 --image-size 32 --batch 8' if small else '--arch resnet50 --image-size 224 --batch 256'
    little = f'--arch resnet18_cifar --batch {8 if small else 512}'
    return [f'{text} --steps {steps} {compiled}' for text in (large, little)]


def run(command, seconds, out):
    """Runs a part. Its last line is what it measured where that is JSON, otherwise its last lines are."""
    compiled = str(out.resolve() / 'compiled')
    cache = {'JAX_COMPILATION_CACHE_DIR': compiled, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    started = time.monotonic()
    with subprocess.Popen(command, env=os.environ | cache, cwd=HERE.parent, start_new_session=True, **pipes) as process:
        try:
            printed, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            # With the peer that it may have started, which would keep the GPU.
            os.killpg(process.pid, signal.SIGKILL)
            return {'left out': f'not done after {seconds:.0f} s', 'command': shlex.join(command)}
    lines = printed.strip().splitlines() or ['']
    taken = {'seconds': round(time.monotonic() - started)}
    if process.returncode:
        return taken | {'exit code': process.returncode, 'last lines': (errors + printed).splitlines()[-5:]}
    try:
        return taken | json.loads(lines[-1])
    except ValueError:
        return taken | {'last lines': lines[-3:]}


if __name__ == '__main__':
    main()
