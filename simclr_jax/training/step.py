"""The jitted training step: the only place that differentiates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from simclr_jax.sharding import by_rows, divided, gather, join_rows, replicated, split_rows
from simclr_jax.training.state import Frozen, TrainState
from simclr_jax.training.task import Batch, Memory, Metrics, Parts, Step, Task

# Stream of the random numbers of a memory, beside those of the parameters.
MEMORY_STREAM = 1


def state_shardings(shapes: TrainState, mesh: Mesh, sharding: str = 'replicated') -> TrainState:
    """The sharding of each array of a state, as a TrainState of shardings.

    Args:
        shapes: Shapes of the state, see `abstract_state`.
        mesh: Devices that train.
        sharding: 'replicated' keeps the whole state on every device. 'fsdp' (fully sharded data parallelism) divides
            parameters, the optimiser's moments and frozen parts among the devices. Moving statistics and counters stay
            on each.
    """
    everywhere = jax.tree.map(lambda _: replicated(mesh), shapes)
    if sharding == 'replicated':
        return everywhere
    by_parameter = jax.tree.map(lambda leaf: divided(mesh, leaf.shape), shapes)
    return by_parameter.replace(step=everywhere.step, batch_stats=everywhere.batch_stats)


def abstract_state(
    task: Task, tx: optax.GradientTransformation, memory: Memory | None = None, constant: Parts | None = None
) -> TrainState:
    """Shapes and dtypes of a state, computed without device memory.

    Args:
        task: Task that is learnt.
        tx: Optimiser.
        memory: Makes the frozen parts that the step updates. None: there are none.
        constant: Shapes of the constant frozen parts, by name. None: there are none.
    """
    state = jax.eval_shape(_init(task, tx, memory), jax.random.key(0))
    return with_constant(state, constant or {})


def with_constant(state: TrainState, parts: Parts) -> TrainState:
    """The state with these constant frozen parts, by name, in the place of its own."""
    return state.replace(frozen=state.frozen.replace(constant=dict(parts)))


def _init(task: Task, tx: optax.GradientTransformation, memory: Memory | None) -> Callable[[jax.Array], TrainState]:
    def init(key):
        variables = task.init(key)
        updated = {} if memory is None else memory.init(jax.random.fold_in(key, MEMORY_STREAM), variables)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables['params'],
            batch_stats=variables.get('batch_stats', {}),
            opt_state=tx.init(variables['params']),
            frozen=Frozen(updated=dict(updated)),
        )

    return init


def init_state(
    task: Task,
    tx: optax.GradientTransformation,
    key: jax.Array,
    mesh: Mesh,
    shardings: TrainState | None = None,
    memory: Memory | None = None,
) -> TrainState:
    """Makes a fresh state at step 0. Its bits do not depend on the devices or the layout.

    Each device draws the whole state before it is divided: draws of parts are fused in other ways, which rounds them
    differently.

    Args:
        task: Task that is learnt.
        tx: Optimiser.
        key: Key of the initial values.
        mesh: Devices that train.
        shardings: Sharding of each array, see `state_shardings`. None means the whole state on every device.
        memory: Makes the frozen parts that the step updates. None: there are none.

    Returns:
        The state. It has no constant frozen parts, see `with_constant`.
    """
    state = jax.jit(_init(task, tx, memory), out_shardings=replicated(mesh))(key)
    if shardings is None:
        return state
    return jax.jit(lambda whole: whole, out_shardings=with_constant(shardings, {}))(state)


def make_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    shardings: TrainState | None = None,
    microbatches: int = 1,
    memory: Memory | None = None,
) -> Step:
    """Builds `step(state, batch, key) -> (state, metrics)`, a pure function on global arrays.

    The state is donated. The step's random numbers follow from fold_in(key, state.step), so that the same inputs give
    the same bits.

    Args:
        task: Task that is learnt. It gives outputs and loss.
        tx: Optimiser.
        mesh: Devices that train. The rows of a batch are divided among them.
        shardings: Sharding of each array of the state, see `state_shardings`. None means the whole state on every
            device.
        microbatches: Number of parts of the batch that pass through the network one after another, see
            `_gradients_by_microbatches`. It divides the images of every device. The loss is that of the whole batch
            at any number.
        memory: Updates the state's frozen parts. None: the step leaves them as they are.

    Returns:
        The jitted step. Its metrics are the task's and 'gradient_norm', the norm of the gradients before the
        optimiser.
    """

    def step(state: TrainState, batch: Batch, key: jax.Array):
        step_key = jax.random.fold_in(key, state.step)
        frozen = state.frozen
        if memory is not None:
            frozen = frozen.replace(updated=memory.before(state.params, frozen.updated))

        def outputs(params, batch):
            parts = frozen.parts
            if shardings is not None:
                params = gather(params, shardings.params)
                parts = gather(parts, shardings.frozen.parts)
            variables = {'params': params, 'batch_stats': state.batch_stats, **parts}
            return task.outputs(variables, batch, step_key)

        def loss(found, batch):
            return task.loss(found, batch, frozen.parts)

        if microbatches == 1:
            gradients, found, moved, metrics = _gradients(outputs, loss, state.params, batch)
        else:
            gradients, found, moved, metrics = _gradients_by_microbatches(
                outputs, loss, state.params, batch, mesh, microbatches
            )
        if memory is not None:
            frozen = frozen.replace(updated=memory.after(frozen.updated, found, moved))
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=moved['batch_stats'],
            opt_state=opt_state,
            frozen=frozen,
        )
        return new_state, {**metrics, 'gradient_norm': optax.tree.norm(gradients)}

    everywhere = replicated(mesh)
    of_state = shardings or everywhere
    return jax.jit(
        step,
        in_shardings=(of_state, by_rows(mesh), everywhere),
        out_shardings=(of_state, everywhere),
        donate_argnums=0,
    )


def _gradients(outputs, loss, params, batch: Batch) -> tuple[Any, Any, Any, Metrics]:
    """Differentiates the loss of a batch with respect to the parameters.

    Args:
        outputs: Function of (params, batch), see `Task.outputs`.
        loss: Function of (outputs, batch), see `Task.loss`.
        params: Parameters.
        batch: Batch.

    Returns:
        Gradients, outputs of all images, the collections that moved, and metrics.
    """

    def loss_of(params):
        found, moved = outputs(params, batch)
        value, metrics = loss(found, batch)
        return value, (found, moved, metrics)

    (_, (found, moved, metrics)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    return gradients, found, moved, metrics


def _gradients_by_microbatches(
    outputs, loss, params, batch: Batch, mesh: Mesh, microbatches: int
) -> tuple[Any, Any, Any, Metrics]:
    """Computes what `_gradients` does, but keeps the activations of only one microbatch (GradCache, arXiv 2101.06983).

    1. The network computes the outputs of all images, one microbatch at a time, without gradients.
    2. The loss of the whole batch is differentiated with respect to the outputs. Every image has all others of the
       global batch as negatives.
    3. The network runs again, one microbatch at a time, and carries these gradients back to the parameters.

    The network therefore runs forward twice. Batch norms normalise each microbatch with its own statistics over all
    devices. The moving statistics move by the mean over the microbatches. Where each microbatch has the statistics of
    the whole batch, the gradients are also the same. The TPU's compiler sums the gradients over the devices only once,
    after the last microbatch.
    """
    parts = split_rows(batch, microbatches, mesh)
    _, (found, moved) = jax.lax.scan(lambda _, part: (None, outputs(params, part)), None, parts)
    moved = jax.tree.map(lambda statistics: statistics.mean(0), moved)

    found = join_rows(found, mesh)
    (_, metrics), sensitivities = jax.value_and_grad(loss, has_aux=True)(found, batch)

    def accumulate(total, part):
        rows, sensitivity = part
        _, pull_back = jax.vjp(lambda params: outputs(params, rows)[0], params)
        return jax.tree.map(jnp.add, total, *pull_back(sensitivity)), None

    backwards = (parts, split_rows(sensitivities, microbatches, mesh))
    gradients, _ = jax.lax.scan(accumulate, jax.tree.map(jnp.zeros_like, params), backwards)
    return gradients, found, moved, metrics
