"""Comparisons of the device augmentation with the host augmentation. Importing this needs TensorFlow."""

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf

# Both compute in float32 but in a different order: some tens of roundings of 6e-8. The error found is 1e-6.
TOLERANCE = 1e-5


def keys_of(count, seed=0):
    """One random key per image."""
    return jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(jnp.arange(count))


def close(actual, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=tolerance)


def by_host(function, images, *parameters):
    """Applies a function of the host to each image with its own parameters, and stacks the results."""
    return np.stack([function(tf.constant(image), *values) for image, *values in zip(images, *parameters, strict=True)])
