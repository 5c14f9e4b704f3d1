"""Processes on the loopback interface are a pod: the same run in every layout, and every way to lose one of them."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_jax.build import make_task
from simclr_jax.config import load_config
from simclr_jax.sharding import make_mesh
from simclr_jax.training import workdir
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.state import TrainState
from support.paths import REPOSITORY, SHARED
from support.runs import DIGITS, model_of, rows_of

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

# What issue and README promise: a job that has lost a process is over by then.
BOUND_SECONDS = 60
# Every start of every process compiles: with as little optimisation as can be.
ENVIRONMENT = {
    **os.environ,
    'XLA_FLAGS': '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true',
}
STEPS, LOG_EVERY = 40, 4
# Depth 6, since each of four processes traces the network anew.
LONGER = [
    *DIGITS,
    '--config.model.depth=6',
    f'--config.train_steps={STEPS}',
    f'--config.log_every_steps={LOG_EVERY}',
    '--config.checkpoint_every_steps=8',
    '--config.knn.every_epochs=0',
]


class Job:
    """`simclr train` as so many processes with so many devices each."""

    def __init__(self, processes, devices, workdir, arguments):
        self.workdir, self.output = pathlib.Path(workdir), pathlib.Path(f'{workdir}.log')
        launcher = [sys.executable, 'launch/processes.py', f'--processes={processes}', f'--devices={devices}']
        program = [sys.executable, '-m', 'simclr_jax', 'train', *arguments, f'--workdir={workdir}']
        with self.output.open('w') as output:
            self.launcher = subprocess.Popen(
                [*launcher, *program],
                cwd=REPOSITORY,
                env=ENVIRONMENT,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def pids(self):
        """Of the processes, in their order."""
        children = pathlib.Path(f'/proc/{self.launcher.pid}/task/{self.launcher.pid}/children').read_text()
        return [int(pid) for pid in children.split()]

    def wait_for_step(self, step):
        """Until so many steps are logged and a checkpoint is complete."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            assert self.launcher.poll() is None, self.output.read_text()
            is_saved = any(path.name.isdigit() for path in (self.workdir / 'checkpoints').glob('*'))
            if is_saved and rows_of(self.workdir)[-1]['step'] >= step:
                return
            time.sleep(0.05)
        raise AssertionError(self.output.read_text())

    def end(self, limit=300):
        """Exit code and what was printed."""
        try:
            return self.launcher.wait(limit), self.output.read_text()
        finally:
            with contextlib.suppress(ProcessLookupError):
                self.launcher.kill()


def run(processes, devices, workdir, arguments):
    code, output = Job(processes, devices, workdir, arguments).end()
    assert code == 0, output
    return output


def checksums_of(workdir, step=STEPS):
    return (workdir / 'checkpoints' / str(step) / 'meta' / 'metadata').read_text()


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('pod') / 'undisturbed'
    output = run(4, 1, workdir, LONGER)
    # The first one alone speaks.
    assert output.count('Model: ResNet-6') == 1
    assert [row['step'] for row in rows_of(workdir)] == list(range(LOG_EVERY, STEPS + 1, LOG_EVERY))
    return workdir


def assert_goes_on_to_the_same_end(workdir, undisturbed):
    output = run(4, 1, workdir, LONGER)
    resumed = int(re.search(r'Resuming at step (\d+)', output)[1])
    # Parameters, statistics, the optimiser's state and the step, to the bit.
    assert checksums_of(workdir) == checksums_of(undisturbed)
    # A row is a mean over the steps since the row before. The one of the resumption has fewer of them.
    cut = -(-resumed // LOG_EVERY) * LOG_EVERY if resumed % LOG_EVERY else None
    losses = [
        [(row['step'], row['loss']) for row in rows_of(path) if row['step'] != cut] for path in (workdir, undisturbed)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize('number, lost', [(signal.SIGKILL, 2), (signal.SIGKILL, 0), (signal.SIGSTOP, 2)])
def test_a_lost_process_ends_the_job_which_may_go_on(undisturbed, tmp_path, number, lost):
    job = Job(4, 1, tmp_path / 'run', LONGER)
    job.wait_for_step(12)
    os.kill(job.pids()[lost], number)
    start = time.monotonic()
    code, output = job.end()
    assert time.monotonic() - start < BOUND_SECONDS
    # Killed, or aborted for the loss of another one: by a signal, after which launchers start again.
    assert code == 42 or code > 128, output
    assert 'launch/local.sh: process' in output
    assert_goes_on_to_the_same_end(tmp_path / 'run', undisturbed)


def test_sigterm_saves_and_the_same_command_goes_on(undisturbed, tmp_path):
    job = Job(4, 1, tmp_path / 'run', LONGER)
    job.wait_for_step(12)
    job.launcher.send_signal(signal.SIGTERM)
    start = time.monotonic()
    code, output = job.end()
    assert time.monotonic() - start < BOUND_SECONDS
    assert code == 42, output
    assert output.count('stopped by SIGTERM: saved at step') == 1
    assert_goes_on_to_the_same_end(tmp_path / 'run', undisturbed)


def test_an_unreadable_newest_checkpoint_is_set_aside(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / 'run')
    for path in (tmp_path / 'run' / 'checkpoints' / str(STEPS)).rglob('d/*'):
        path.write_bytes(b'')
    assert_goes_on_to_the_same_end(tmp_path / 'run', undisturbed)
    assert (tmp_path / 'run' / 'damaged' / str(STEPS)).is_dir()


def test_a_directory_that_cannot_be_written_is_a_mistake_told_once(tmp_path):
    (tmp_path / 'file').write_text('no directory')
    start = time.monotonic()
    code, output = run_to_its_end('train', *LONGER, f'--workdir={tmp_path}/file/run', processes=2)
    assert time.monotonic() - start < BOUND_SECONDS
    assert code == 2, output
    assert output.count('cannot be used') == 1
    assert 'Traceback' not in output


def run_to_its_end(*arguments, processes, devices=1):
    """Exit code and output of simclr; as Job, without a file beside the work directory."""
    done = subprocess.run(
        [
            *(sys.executable, 'launch/processes.py', f'--processes={processes}', f'--devices={devices}'),
            *(sys.executable, '-m', 'simclr_jax', *arguments),
        ],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a quarter MiB, which takes no whole checkpoint."""
    place = tmp_path / 'small'
    place.mkdir()
    mounted = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip('a small file system can only be mounted by root')
    yield place
    subprocess.run(['umount', '--lazy', place], check=True)


def test_a_full_disk_is_told(small_disk):
    code, output = run_to_its_end('train', *LONGER, f'--workdir={small_disk}/run', processes=1)
    assert code == 2, output
    assert 'No space left' in output
    assert 'Traceback' not in output
    assert 'the same command resumes' in output


CIFAR10 = [
    f'--config={REPOSITORY}/configs/cifar10.py:cpu',
    f'--config.data.path={SHARED}/data/tfds',
    '--config.data.eval_split=',
    '--config.model.depth=6',
    '--config.model.width=0.125',
    '--config.batch_size=64',
    '--config.train_steps=20',
    '--config.log_every_steps=1',
    '--config.checkpoint_every_steps=10',
    '--config.optimizer.name=lars',
]


def make_start(directory):
    """A run that has done nothing, whose parameters are away from where they begin.

    The last scale of a block and all offsets begin at zero, so that rectifiers begin at their kinks. There a sum in
    another order decides whether a gradient goes through.
    """
    options = [option.removeprefix('--config.').split('=', 1) for option in CIFAR10[1:]]
    config = load_config(CIFAR10[0].removeprefix('--config='), options)
    mesh = make_mesh(jax.devices()[:1])
    variables = jax.jit(make_task(config, 10, mesh).init)(jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.where(jnp.any(x), x, 0.5), variables['params'])
    workdir.claim(str(directory), config, allow_change=False)
    checkpoints = Checkpoints(str(directory))
    checkpoints.save(TrainState(np.int32(0), params, variables['batch_stats'], opt_state={'none': np.zeros(1)}))
    checkpoints.close()


# Students of the same network: its projections and a queue that is filled three times, or its classifier.
QUEUE_AND_TEACHER = (
    '--config.task=disco',
    '--config.loss.name=info_nce',
    '--config.loss.queue_size=448',
    '--config.loss_scale=1',
)
CLASSIFIER = ('--config.task=distill', '--config.head.kind=none', '--config.augment.views=crop flip')


@pytest.mark.parametrize(
    'layouts, options',
    [
        pytest.param([(1, 8), (2, 4), (4, 2)], (), id='simclr'),
        pytest.param([(1, 8), (2, 4)], QUEUE_AND_TEACHER, id='disco'),
        pytest.param([(1, 8), (2, 4)], CLASSIFIER, id='distill'),
    ],
)
def test_every_layout_is_the_same_run(tmp_path, layouts, options):
    """One process with eight devices, two with four, four with two: 20 steps on CIFAR-10."""
    if not (SHARED / 'data' / 'tfds').is_dir():
        pytest.skip(f'CIFAR-10 is not at {SHARED}')
    make_start(tmp_path / 'start')
    arguments = [*CIFAR10, f'--config.init_from={tmp_path}/start', *options]
    if options:
        arguments.append(f'--config.teacher.path={tmp_path}/start')
    for processes, devices in layouts:
        run(processes, devices, tmp_path / f'{processes}x{devices}', arguments)
    # What several processes have saved half-way, one takes to the end.
    other = tmp_path / 'other'
    processes, devices = layouts[-1]
    shutil.copytree(tmp_path / f'{processes}x{devices}', other)
    shutil.rmtree(other / 'checkpoints' / '20')
    assert 'Resuming at step 10' in run(1, 8, other, arguments)

    names = [f'{processes}x{devices}' for processes, devices in layouts] + ['other']
    expected, *others = (np.array([row['loss'] for row in rows_of(tmp_path / name)]) for name in names)
    assert expected.shape == (20,)
    report = {}
    model, _ = model_of(tmp_path / '1x8')
    for name, losses in zip(names[1:], others, strict=True):
        found, _ = model_of(tmp_path / name)
        distance = jax.tree.map(lambda a, b: np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6), found, model)
        report[name] = {
            'first loss': float(abs(losses[0] / expected[0] - 1)),
            'losses': float(np.abs(losses / expected - 1).max()),
            'variables': float(max(jax.tree.leaves(distance))),
        }
    print(json.dumps(report))
    for name, found in report.items():
        # A sum in another order, by a few units in the last place of float32.
        assert found['first loss'] < 1e-6, name
        # Batch norms and twenty updates amplify it.
        assert found['losses'] < 1e-5, name
        assert found['variables'] < 1e-4, name


def test_two_processes_evaluate_as_one(undisturbed, tmp_path):
    """On frozen features, with their intervals; the measures too."""
    scores = []
    for processes, devices in ((1, 1), (2, 2)):
        workdir = tmp_path / f'{processes}x{devices}'
        shutil.copytree(undisturbed, workdir)
        protocols = '--protocols=knn,linear,svm,measures', '--labels=5,all'
        code, output = run_to_its_end(
            'evaluate', f'--workdir={workdir}', *protocols, processes=processes, devices=devices
        )
        assert code == 0, output
        assert output.count('Wrote result.json') == 1
        scores.append(json.loads((workdir / 'result.json').read_text())['scores'])
    assert len(scores[0]) == len(scores[1]) >= 10
    for one, two in zip(*scores, strict=True):
        # An image on the border between two classes may fall on either side.
        assert two['value'] == pytest.approx(one['value'], abs=2 / 360, rel=1e-3), (one, two)
