"""Recomputing blocks in the backward pass keeps fewer activations. Values, statistics and gradients stay the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.models.resnet import ResNet

IMAGES = np.random.default_rng(0).uniform(size=(4, 16, 16, 3)).astype(np.float32)


def gradient_of(model):
    """Function of variables: a loss, the moved statistics, and the gradients."""

    def loss(params, statistics):
        variables = {'params': params, 'batch_stats': statistics}
        h, moved = model.apply(variables, IMAGES, train=True, mutable=['batch_stats'])
        return jnp.sum(jnp.square(h)), moved

    gradient = jax.value_and_grad(loss, has_aux=True)
    return lambda variables: gradient(variables['params'], variables['batch_stats'])


def test_each_of_four_stages_is_recomputed():
    plain = ResNet(10, width=1 / 16)
    shapes = jax.eval_shape(functools.partial(plain.init, train=True), jax.random.key(1), IMAGES)
    kept, recomputed = (
        str(jax.make_jaxpr(gradient_of(model))(shapes)) for model in (plain, plain.clone(remat=(1, 2, 3, 4)))
    )
    assert 'remat' not in kept
    assert recomputed.count('checkpoint') + recomputed.count('remat') >= 4


def test_it_changes_nothing_but_what_is_kept():
    """In two stages, one of each kind: with and without a stride."""
    plain = ResNet(6, width=1 / 16)
    variables = jax.jit(functools.partial(plain.init, train=True))(jax.random.key(1), IMAGES)
    results = (jax.jit(gradient_of(model))(variables) for model in (plain, plain.clone(remat=(1, 2))))
    # The two programs may order their float32 sums differently.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max() + 1e-6), *results)
