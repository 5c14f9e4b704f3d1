"""The work directory of an encoder that was not trained."""

import jax
import numpy as np

from simclr_jax import sharding
from simclr_jax.build import make_task
from simclr_jax.config import pretraining as configuration
from simclr_jax.training import workdir
from simclr_jax.training.checkpoints import Checkpoints
from simclr_jax.training.optim import make_optimizer
from simclr_jax.training.state import TrainState
from support.runs import DIGITS_HERE
from support.weights import random_variables


def make_workdir(path, seed=0, draw=0):
    """A work directory as a converted encoder has it: configuration and model, not trained, nothing else.

    The seed is that of the configuration. `draw` chooses the variables.
    """
    overrides = [tuple(option.removeprefix('--config.').split('=', 1)) for option in DIGITS_HERE[1:]]
    config = configuration.load_config(
        DIGITS_HERE[0].removeprefix('--config='),
        [*overrides, ('model.depth', '6'), ('model.width', '0.0625'), ('seed', str(seed))],
    )
    mesh = sharding.make_mesh()
    variables = random_variables(jax.eval_shape(make_task(config, 10, mesh).init, jax.random.key(0)), draw)
    tx = make_optimizer('momentum', lambda step: 0.1, weight_decay=0.0)
    state = TrainState(np.int32(3), opt_state=jax.jit(tx.init)(variables['params']), **variables)
    workdir.claim(str(path), config, allow_change=False)
    checkpoints = Checkpoints(str(path))
    checkpoints.save(jax.device_put(state, sharding.replicated(mesh)))
    checkpoints.close()
    return path
