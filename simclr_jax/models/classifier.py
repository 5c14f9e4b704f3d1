"""Classifiers on top of a pretrained encoder: one behind encoder and head, or one for each feature map."""

from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from simclr_jax.models.batch_norm import BatchNorm
from simclr_jax.models.encoders import Encoder
from simclr_jax.models.heads import ProjectionHead
from simclr_jax.models.layers import dense
from simclr_jax.models.pooling import pool_to
from simclr_jax.ops.precision import at_least_float32


class Classifier(nn.Module):
    """Encoder, optionally the first layers of the projection head, and a linear classifier.

    SimCLR fine-tunes from the representation, SimCLRv2 from the head's first layer (arXiv 2006.10029, section 2).

    Attributes:
        encoder: Encoder f, images to representations.
        head: Projection head g. The classifier keeps its first `head_layer` layers.
        num_classes: Number of classes K.
        head_layer: Index in [h, output of the head's layer 1, ...] of the features that are classified.
        zero_init: Whether the linear classifier, which is named `probe`, starts at zero.
        dtype: Precision of the linear classifier's computation. Its logits are at least float32.
    """

    encoder: Encoder
    head: ProjectionHead
    num_classes: int
    head_layer: int = 0
    zero_init: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        """Makes the linear classifier. Encoder and head are given."""
        self.probe = dense(self.num_classes, dtype=self.dtype, use_bias=True, zero_init=self.zero_init)

    def __call__(self, x: jax.Array, *, train: bool, frozen: int = 0) -> jax.Array:
        """Classifies images.

        Args:
            x: Images [N, H, W, C], floats in [0, 1].
            train: Whether to normalise with the statistics of the batch and update the moving ones. Otherwise the
                moving ones are used.
            frozen: Number of frozen parts of the encoder, see `encoders.Encoder`.

        Returns:
            Logits [N, K].
        """
        features = self.features(x, train=train, frozen=frozen)
        return at_least_float32(self.probe(features))

    def features(self, x: jax.Array, *, train: bool = False, frozen: int = 0) -> jax.Array:
        """Computes the features [N, F] that are classified. The arguments are those of `__call__`."""
        h = self.encoder(x, train=train, frozen=frozen)
        return self.head(h, train=train, until=self.head_layer)[-1]


class FeatureMapClassifiers(nn.Module):
    """A linear classifier for each feature map of a frozen encoder (Goyal et al., arXiv 1905.01235).

    Each map is averaged to about 9,000 values, normalised by a batch norm without scale and offset, and classified.
    'feature1' is the stem's map before its max pooling. The last one is the map of the encoder's last part.

    Attributes:
        encoder: Encoder f. It uses its moving statistics, and no gradient reaches it.
        num_classes: Number of classes K.
        dtype: Precision of the classifiers' computation. Their logits are at least float32.
    """

    encoder: Encoder
    num_classes: int
    dtype: Any = jnp.float32

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classifiers, from the stem up."""
        return tuple(f'feature{number + 1}' for number in range(len(self.encoder.parts)))

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Classifies images from each feature map.

        Args:
            x: Images [N, H, H, C], floats in [0, 1].
            train: Whether the batch norms before the classifiers use the statistics of the batch.

        Returns:
            Logits {'feature1': [N, K], 'feature2': [N, K], ...}, one for each part of the encoder.
        """
        parts, logits = self.encoder.parts, {}
        _, maps = self.encoder(x, train=False, frozen=len(parts), maps=True)
        for name, part in zip(self.names, parts, strict=True):
            values = BatchNorm(use_bias=False, use_scale=False, name=f'{name}_bn')(pool_to(maps[part]), train=train)
            values = values.reshape(values.shape[0], -1)
            logits[name] = at_least_float32(dense(self.num_classes, dtype=self.dtype, use_bias=True, name=name)(values))
        return logits


def pretrained_into(fresh: dict[str, Any], pretrained: dict[str, Any]) -> dict[str, Any]:
    """Takes the encoder, and the layers of the head that a classifier has, from a pretraining.

    Args:
        fresh: Variables of the classifier, {'params': ..., 'batch_stats': ...}.
        pretrained: Variables of `SimCLR`. Its own probe and further layers of the head are not used.

    Returns:
        Variables like `fresh`, whose encoder and head are the arrays of `pretrained`.

    Raises:
        ValueError: Encoder or head are not those of the pretraining.
    """
    fresh, pretrained = (flax.traverse_util.flatten_dict(tree, sep='/') for tree in (fresh, pretrained))
    taken = {}
    for path, value in fresh.items():
        part = path.split('/')[1]
        taken[path] = _pretrained_array(path, value, pretrained) if part in ('encoder', 'head') else value
    for path in pretrained.keys() - fresh.keys():
        if path.split('/')[1] == 'encoder':
            raise _another_network(path, 'missing', jnp.shape(pretrained[path]))
    return flax.traverse_util.unflatten_dict(taken, sep='/')


def _pretrained_array(path: str, value: jax.Array, pretrained: dict[str, jax.Array]) -> jax.Array:
    if path not in pretrained:
        raise _another_network(path, jnp.shape(value), 'missing')
    if jnp.shape(pretrained[path]) != jnp.shape(value):
        raise _another_network(path, jnp.shape(value), jnp.shape(pretrained[path]))
    return pretrained[path]


def _another_network(path: str, here: Any, there: Any) -> ValueError:
    return ValueError(
        f'{path} is {here} in the classifier and {there} in the pretrained model; give encoder and head the '
        'depth, width, stem, ratios and layers of the pretraining'
    )
