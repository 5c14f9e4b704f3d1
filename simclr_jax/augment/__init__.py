"""Image augmentation: `policy` says what is done to an image, `host` does it with TensorFlow, `device` in JAX."""
