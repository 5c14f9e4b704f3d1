"""Compares a distillation step with the student's own step plus the teacher's forward pass.

python benchmarks/distillation.py [--steps=20]           on the devices of this machine, CIFAR-10's networks
python benchmarks/distillation.py --topology=v5e:4x8     by the TPU compiler, ResNet-50 from ResNet-50, 224 pixels

Prints one JSON line. `whole_over_parts` is the seconds of the distillation step over the sum of the two parts. It is at
most 1 where nothing is computed twice. On this machine the three programs run in turn, and the figures are medians. For
a topology the parts are distillations with a negligible teacher and with a negligible student.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax import sharding
from simclr_jax.build import make_task
from simclr_jax.config import load_config
from simclr_jax.models.classifier import Classifier
from simclr_jax.networks import Teacher, make_model
from simclr_jax.tasks.finetune import Finetune
from simclr_jax.tasks.memory import TEACHER
from simclr_jax.training import optim, workdir
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.state import TrainState
from simclr_jax.training.step import abstract_state, init_state, make_train_step, state_shardings, with_constant

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A network whose cost does not count.
NEGLIGIBLE = ('--config.model.depth=6', '--config.model.width=0.0625')


def main():
    """Measures here, or compiles for a topology."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--topology', default='')
    options = parser.parse_args()
    print(json.dumps(planned(options.topology) if options.topology else measured(options.steps)))


def measured(steps):
    """Median seconds of the three programs for CIFAR-10's quarter-width ResNet-18 and a half-width teacher."""
    config = load_config(f'{ROOT}/configs/distill/cifar10.py:cpu', [('teacher.path', 'none')])
    mesh, key = sharding.make_mesh(), jax.random.key(0)
    teacher = Teacher(load_config(f'{ROOT}/configs/cifar10.py:r18', [('model.width', '0.5')]), 10)
    taught = {TEACHER: jax.jit(teacher.classifier().init, static_argnames='train')(key, images_of(2), train=False)}
    model = make_model(config, 0)
    student = Finetune(Classifier(model.encoder, model.head, 10), config.data.image_size, mesh)
    batch = {
        'views': np.random.default_rng(0).uniform(size=(config.batch_size, 1, 32, 32, 3)).astype(np.float32),
        'label': np.zeros(config.batch_size, np.int32),
        'mask': np.ones(config.batch_size, np.float32),
        'index': np.arange(config.batch_size, dtype=np.int32),
    }
    batch = sharding.to_global(batch, mesh)
    predict = jax.jit(lambda variables: teacher.classifier().apply(variables, batch['views'][:, 0], train=False))
    programs = {
        'distillation_step': stepper(make_task(config, 10, mesh, teacher=teacher), mesh, batch, taught),
        'student_step': stepper(student, mesh, batch, {}),
        'teacher_forward': lambda: predict(taught[TEACHER]),
    }
    seconds = {name: [] for name in programs}
    for number in range(steps + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            if number:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    parts = medians['student_step'] + medians['teacher_forward']
    return {
        'device': jax.devices()[0].device_kind,
        'images': config.batch_size,
        **{f'{name}_seconds': round(value, 4) for name, value in medians.items()},
        'whole_over_parts': round(medians['distillation_step'] / parts, 3),
    }


def images_of(count):
    """Black images [count, 32, 32, 3]."""
    return jnp.zeros((count, 32, 32, 3), jnp.float32)


def stepper(task, mesh, batch, constant):
    """A function that makes one training step from the state of the step before."""
    tx = optim.make_optimizer('adam', lambda step: 1e-3, weight_decay=1e-6)
    state = with_constant(init_state(task, tx, jax.random.key(1), mesh), constant)
    shardings = state_shardings(abstract_state(task, tx, None, constant), mesh)
    step = make_train_step(task, tx, mesh, shardings=shardings)
    states = [jax.device_put(state, shardings, may_alias=False)]

    def run():
        states[0], metrics = step(states[0], batch, jax.random.key(0))
        return metrics

    return run


def planned(topology):
    """Estimated seconds of three distillation steps of 4,096 images."""
    with tempfile.TemporaryDirectory() as folder:
        large, small = (make_teacher(f'{folder}/{name}', options) for name, options in (('r50', ()), ('s', NEGLIGIBLE)))
        runs = {'distillation_step': (large, ()), 'student_step': (small, ()), 'teacher_forward': (large, NEGLIGIBLE)}
        found = {name: compile_plan(topology, *run, folder) for name, run in runs.items()}
    parts = found['student_step'] + found['teacher_forward']
    return {
        'topology': topology,
        **{f'{name}_seconds': round(value, 4) for name, value in found.items()},
        'whole_over_parts': round(found['distillation_step'] / parts, 3),
    }


def make_teacher(directory, options):
    """A work directory with the shapes of a teacher of ImageNet's classes, all zeros."""
    pairs = [tuple(option.removeprefix('--config.').split('=')) for option in options]
    config = load_config(f'{ROOT}/configs/imagenet.py', pairs)
    shapes = Teacher(config, 1000).shapes('distill')
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    workdir.claim(directory, config, allow_change=False)
    checkpoints = Checkpoints(directory)
    checkpoints.save(TrainState(jnp.int32(0), zeros['params'], zeros['batch_stats'], {'none': jnp.zeros(1)}))
    checkpoints.close()
    return directory


def compile_plan(topology, teacher, options, folder):
    """Seconds of a step by `simclr plan`."""
    answer = pathlib.Path(folder) / 'plan.json'
    command = [
        *(sys.executable, '-m', 'simclr_jax', 'plan', f'--topology={topology}', f'--json={answer}'),
        *('--config=configs/distill/imagenet.py', f'--config.teacher.path={teacher}', '--config.data.feed=host'),
        *options,
    ]
    subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)
    return json.loads(answer.read_text())['estimate']['step']


if __name__ == '__main__':
    main()
