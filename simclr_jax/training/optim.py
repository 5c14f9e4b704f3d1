"""Optimisers of the published runs: LARS, SGD with Nesterov or plain momentum, and Adam.

The path of a parameter decides whether it decays:

* `kernel` is a weight of a convolution or dense layer. A `bias` beside it is that layer's offset.
* A `scale` or `bias` without a kernel beside it is a parameter of a norm.
* The top-level module `probe` is the supervised linear classifier.

The learning rate enters the momentum (v = m v + lr g, not p -= lr v), as in the reference. Under a schedule the two
are different optimisers. 'sgd' is the other one, PyTorch's, with which MoCo and DisCo were trained.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

TRUST_COEFFICIENT = 0.001


def make_optimizer(
    name: str, schedule: optax.Schedule, *, weight_decay: float, momentum: float = 0.9
) -> optax.GradientTransformation:
    """Makes the optimiser of a run.

    With p a parameter, g its gradient, v its momentum, lr the learning rate, m `momentum` and wd `weight_decay`, one
    update computes:

        'lars' (arXiv 1708.03888)   g += wd p
                                    trust = 0.001 |p| / |g|, or 1 where either norm is 0
                                    v = m v + lr trust g
                                    p -= v
        'momentum' (Nesterov)       v = m v - lr g
                                    p += m v - lr g
        'sgd' (PyTorch's)           v = m v + g
                                    p -= lr v
        'adam' (arXiv 1412.6980)    beta 0.9 and 0.999, epsilon 1e-7

    With 'lars' kernels decay, and all kernels except the probe's have a trust ratio. Biases and batch norms have
    neither. With 'momentum' and 'adam' the decay is the L2 penalty wd / 2 |p|^2 of all parameters except those of
    batch norms. Biases and the probe are included. With 'sgd' all parameters decay. The penalty passes through the
    moments like any gradient. Adam adds epsilon to the root of the uncorrected second moment.

    Args:
        name: 'lars', 'momentum', 'sgd' or 'adam'.
        schedule: Function from the step to the learning rate, for example from `warmup_cosine`.
        weight_decay: Weight decay wd, at least 0.
        momentum: Momentum m, from 0 to below 1. Adam does not use it.

    Returns:
        A transformation whose `update` needs the parameters, as nested dictionaries from Flax.

    Raises:
        ValueError: The name is unknown.
    """
    if name == 'lars':
        return optax.lars(
            schedule,
            weight_decay=weight_decay,
            weight_decay_mask=_kernels,
            trust_coefficient=TRUST_COEFFICIENT,
            trust_ratio_mask=_kernels_outside_probe,
            momentum=momentum,
        )
    if name == 'sgd':
        return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum))
    penalty = optax.add_decayed_weights(weight_decay, mask=_all_but_norms)
    rate = optax.scale_by_learning_rate(schedule)
    if name == 'momentum':
        return optax.chain(penalty, rate, optax.trace(momentum, nesterov=True))
    if name == 'adam':
        return optax.chain(penalty, _scale_by_adam(beta1=0.9, beta2=0.999, epsilon=1e-7), rate)
    raise ValueError(f"optimizer '{name}' is unknown; choose 'lars', 'momentum', 'sgd' or 'adam'")


def freeze(
    tx: optax.GradientTransformation, is_frozen: Callable[[tuple[str, ...]], bool]
) -> optax.GradientTransformation:
    """Makes an optimiser that leaves some parameters alone. They do not move or decay, and they have no state.

    Args:
        tx: Optimiser of the other parameters.
        is_frozen: Function that says whether a parameter is frozen. Its argument is the path of the parameter, for
            example ('encoder', 'stem', 'conv', 'kernel').
    """

    def labels(params):
        return _mask(lambda path: 'frozen' if is_frozen(tuple(path)) else 'learning', params)

    return optax.partition({'learning': tx, 'frozen': optax.set_to_zero()}, labels)


def _scale_by_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """Adam with its bias corrections gathered in the step size (arXiv 1412.6980, end of section 2).

    `optax.scale_by_adam` adds epsilon to the corrected root instead. There epsilon weighs less, in the first step by
    a factor of 30. It also does not run under strict dtype promotion.
    """

    def init(params):
        mu, nu = optax.tree.zeros_like(params), optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), mu, nu)

    def update(updates, state, params=None):
        del params
        mu = optax.tree.update_moment(updates, state.mu, beta1, 1)
        nu = optax.tree.update_moment(updates, state.nu, beta2, 2)
        count = state.count + 1
        step = count.astype(jnp.float32)
        correction = jnp.sqrt(1 - beta2**step) / (1 - beta1**step)
        updates = jax.tree.map(lambda m, v: correction.astype(m.dtype) * m / (jnp.sqrt(v) + epsilon), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _kernels(params):
    return _mask(lambda path: path[-1] == 'kernel', params)


def _kernels_outside_probe(params):
    return _mask(lambda path: path[-1] == 'kernel' and path[0] != 'probe', params)


def _all_but_norms(params):
    layers = set()
    _mask(lambda path: layers.add(tuple(path[:-1])) if path[-1] == 'kernel' else None, params)
    return _mask(lambda path: path[-1] not in ('scale', 'bias') or tuple(path[:-1]) in layers, params)


def _mask(condition, params):
    """Tree in the shape of params. Each leaf is the value of the condition on that leaf's path, a list of names."""
    return jax.tree_util.tree_map_with_path(lambda path, _: condition([key.key for key in path]), params)
