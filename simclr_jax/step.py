"""The jitted training step: the only place that differentiates."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from simclr_jax.parallel import by_rows, replicated
from simclr_jax.state import TrainState


class Task(Protocol):
    """What the step needs of a task; tasks/pretrain.py has the meaning."""

    def init(self, key: jax.Array) -> dict[str, Any]: ...  # noqa: D102

    def loss(self, params, batch_stats, batch, key) -> tuple[jax.Array, tuple[dict, Any]]: ...  # noqa: D102


Step = Callable[[TrainState, dict[str, jax.Array], jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def init_state(task: Task, tx: optax.GradientTransformation, key: jax.Array, mesh: Mesh) -> TrainState:
    """A fresh state at step 0, the same on every device."""

    def init(key):
        variables = task.init(key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables['params'],
            batch_stats=variables.get('batch_stats', {}),
            opt_state=tx.init(variables['params']),
        )

    return jax.jit(init, out_shardings=replicated(mesh))(key)


def make_train_step(task: Task, tx: optax.GradientTransformation, mesh: Mesh) -> Step:
    """Builds `step(state, batch, key) -> (state, metrics)`, a pure function on global arrays.

    The state is donated. Randomness is fold_in(key, state.step): the same inputs give the same bits.

    Args:
        task: gives the loss.
        tx: the optimiser.
        mesh: the devices; the state is replicated, the batch's rows are divided among them.

    Returns:
        The jitted step; metrics are the task's and 'gradient_norm', before the update.
    """

    def step(state: TrainState, batch: dict[str, jax.Array], key: jax.Array):
        step_key = jax.random.fold_in(key, state.step)
        (_, (metrics, batch_stats)), gradients = jax.value_and_grad(task.loss, has_aux=True)(
            state.params, state.batch_stats, batch, step_key
        )
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return new_state, {**metrics, 'gradient_norm': optax.tree.norm(gradients)}

    everywhere = replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(everywhere, by_rows(mesh), everywhere),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )
