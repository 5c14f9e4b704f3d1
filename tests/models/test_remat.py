"""Recomputing blocks in the backward pass keeps fewer activations. Values, statistics and gradients stay the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax.models.resnet import ResNet


def test_it_changes_nothing_but_what_is_kept():
    images = jax.random.uniform(jax.random.key(0), (4, 16, 16, 3))
    plain = ResNet(10, width=1 / 16)
    recomputing = plain.clone(remat=(1, 2, 3, 4))
    variables = jax.jit(functools.partial(plain.init, train=True))(jax.random.key(1), images)

    def loss(model):
        def of(params):
            stats = {'batch_stats': variables['batch_stats']}
            h, moved = model.apply({'params': params, **stats}, images, train=True, mutable=['batch_stats'])
            return jnp.sum(jnp.square(h)), moved

        return of

    jaxprs = {}
    results = {}
    for name, model in (('plain', plain), ('recomputing', recomputing)):
        gradient = jax.value_and_grad(loss(model), has_aux=True)
        jaxprs[name] = str(jax.make_jaxpr(gradient)(variables['params']))
        results[name] = jax.device_get(jax.jit(gradient)(variables['params']))
    assert 'remat' not in jaxprs['plain']
    assert jaxprs['recomputing'].count('checkpoint') + jaxprs['recomputing'].count('remat') >= 4
    # The two programs may order their float32 sums differently.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max() + 1e-6), *results.values()
    )
