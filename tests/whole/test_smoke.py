"""The life of a run by the command line, on eight devices: train, resume, evaluate, embed, export, plan.

launch/matrix.sh runs this file in environments with other versions, and without TensorFlow.
"""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from simclr_jax.cli.main import main
from simclr_jax.interop import stablehlo
from support.paths import REPOSITORY
from support.runs import DIGITS_HERE, rows_of
from support.weights import share

# The other tests go through the same parts one by one, so that launch/test.sh leaves this file out.
pytestmark = pytest.mark.smoke

# Two dispatches of each run, and an online kNN at its end. `resident` needs no TensorFlow on any platform.
TINY = [*DIGITS_HERE, '--config.model.width=0.0625', '--config.log_every_steps=2', '--config.data.feed=resident']


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """A run that ended at step 4, and resumed up to step 6."""
    folder = tmp_path_factory.mktemp('smoke') / 'run'
    for options in (['--config.train_steps=4'], ['--config.train_steps=6', '--allow-config-change']):
        assert main(['train', *TINY, f'--workdir={folder}', *options]) == 0
    return folder


def test_it_trains_and_resumes_on_eight_devices(workdir, capsys):
    assert jax.device_count() == 8
    steps = {row['step']: row for row in rows_of(workdir) if 'loss' in row}
    assert sorted(steps) == [2, 4, 6]
    assert all(np.isfinite(row['loss']) for row in steps.values())
    assert list((workdir / 'tensorboard').iterdir())


def test_it_evaluates(workdir):
    short = ['--protocols=knn,linear', '--config.linear.lambdas=3', '--config.bootstrap_draws=100']
    assert main(['evaluate', f'--workdir={workdir}', *short]) == 0
    result = json.loads((workdir / 'result.json').read_text())
    assert result['step'] == 6
    assert 0.2 < result['knn_top1'] <= 1  # ten classes
    assert 0.2 < result['linear_top1'] <= 1


def test_it_embeds(workdir, tmp_path):
    assert main(['embed', f'--workdir={workdir}', f'--out={tmp_path}/features.npz']) == 0
    with np.load(tmp_path / 'features.npz') as found:
        assert np.isfinite(found['features']).all()
        assert len(found['features']) == len(found['labels']) == 360


def test_it_exports(workdir, tmp_path):
    """Each version of JAX loads the programs of the others, which launch/matrix.sh keeps for them."""
    for kind in ('safetensors', 'onnx', 'stablehlo'):
        assert main(['export', f'--workdir={workdir}', f'--format={kind}', f'--out={tmp_path}/{kind}']) == 0
    exchange = pathlib.Path(os.environ.get('SIMCLR_EXCHANGE', tmp_path / 'exchange'))
    own = exchange / jax.__version__
    shutil.copytree(tmp_path / 'stablehlo', own, dirs_exist_ok=True)
    images = np.random.default_rng(0).uniform(size=(7, 8, 8, 3)).astype(np.float32)
    np.savez(own / 'outputs.npz', **stablehlo.load(epath.Path(own))[1](images))
    for other in sorted(exchange.iterdir()):
        _, compute = stablehlo.load(epath.Path(other))
        with np.load(other / 'outputs.npz') as expected:
            for count in (1, 7):
                for name, values in compute(images[:count]).items():
                    assert share(values, expected[name][:count]) < 1e-5, (other.name, name)


def test_it_plans(capsys):
    assert main(['plan', f'--config={REPOSITORY}/configs/digits.py', *TINY[1:]]) == 0
    assert '8' in capsys.readouterr().out
