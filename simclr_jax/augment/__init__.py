"""Image augmentation: `operations` and `policy` describe it, `host` computes it in TensorFlow, `device` in JAX."""
