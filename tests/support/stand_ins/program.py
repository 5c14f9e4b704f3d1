"""Stands in for simclr: records its arguments, then does what the plan says for this process and this run.

A number: it ends with that exit code.
save: it waits for SIGTERM, then ends with 42.
hang: it ignores SIGTERM.
kill: it kills itself.
freeze: it stops itself.
last: it ends with 1 as soon as all other processes of its pod wait.
preempt: it makes the file $STAND_INS/preempt, which the stand-ins look for, then does the same as save.
preempt and fail: the same as preempt, but it ends with 1.
"""

import json
import os
import pathlib
import signal
import sys
import time

STATE = pathlib.Path(os.environ['STAND_INS'])


def process_number() -> str:
    names = ('JAX_PROCESS_ID', 'SLURM_PROCID', 'POD_NUMBER', 'HOST_NUMBER')
    return next((os.environ[name] for name in names if name in os.environ), '0')


def main() -> int:
    number = process_number()
    runs = STATE / f'runs-{number}'
    run = len(runs.read_text()) if runs.exists() else 0
    runs.write_text('x' * (run + 1))
    variables = {name: value for name, value in os.environ.items() if name.startswith(('JAX_', 'SLURM_'))}
    with open(STATE / 'runs.jsonl', 'a') as file:
        entry = {'process': number, 'run': run, 'arguments': sys.argv[1:], 'variables': variables}
        file.write(json.dumps(entry) + '\n')

    plan = STATE / 'plan.json'
    acts = json.loads(plan.read_text()).get(f'p{number}', [0]) if plan.exists() else [0]
    act = acts[min(run, len(acts) - 1)]
    print(f'process {number}, run {run}: {act}', flush=True)
    return act if isinstance(act, int) else perform(act)


def perform(act: str) -> int:
    if act == 'kill':
        os.kill(os.getpid(), signal.SIGKILL)
    if act == 'hang':
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: end(1 if act.endswith('fail') else 42))
    if act == 'last':
        return wait_for_others()
    (STATE / f'waits-{process_number()}').touch()
    if act == 'freeze':
        os.kill(os.getpid(), signal.SIGSTOP)
    if act.startswith('preempt'):
        (STATE / 'preempt').touch()
    print('waiting', flush=True)
    time.sleep(150)
    return 99


def end(code: int) -> None:
    # A second signal would kill the interpreter while it ends.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os._exit(code)


def wait_for_others() -> int:
    while len(list(STATE.glob('waits-*'))) < int(os.environ['JAX_NUM_PROCESSES']) - 1:
        time.sleep(0.02)
    return 1


if __name__ == '__main__':
    sys.exit(main())
