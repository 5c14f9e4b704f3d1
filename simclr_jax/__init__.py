"""SimCLR v1 and v2 in JAX and Flax: contrastive pretraining of image encoders and its evaluation."""

__version__ = '0.1.0'
