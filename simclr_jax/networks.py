"""The room where a configuration becomes networks: encoder, model, and the network of a teacher."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from simclr_jax.config import with_values
from simclr_jax.config.encoders import VARIANTS
from simclr_jax.models.classifier import Classifier
from simclr_jax.models.efficientnet import EfficientNet
from simclr_jax.models.encoders import Encoder
from simclr_jax.models.heads import ProjectionHead
from simclr_jax.models.mobilenet import MobileNet
from simclr_jax.models.resnet import ResNet
from simclr_jax.models.simclr import SimCLR

# With stem 'auto', images up to this size (pixels) get the stem without stride.
CIFAR_STEM_UP_TO = 32


def _resnet(model: ConfigDict, common: dict[str, Any]) -> Encoder:
    names = 'depth', 'sk_ratio', 'se_ratio', 'pool', 'border', 'first_shortcut'
    return ResNet(**common, **{name: model[name] for name in names})


def _efficientnet(model: ConfigDict, common: dict[str, Any]) -> Encoder:
    return EfficientNet(**common, **_rows_of_blocks(model))


def _mobilenet(model: ConfigDict, common: dict[str, Any]) -> Encoder:
    return MobileNet(**common, **_rows_of_blocks(model))


def _rows_of_blocks(model: ConfigDict) -> dict[str, Any]:
    variant = model.variant or VARIANTS[model.encoder][0]
    return {'variant': variant, 'stochastic_depth': model.stochastic_depth, 'dropout': model.dropout}


# Encoder by config.model.encoder: a function of the group config.model, and of the attributes that all encoders have.
ENCODERS: dict[str, Callable[[ConfigDict, dict[str, Any]], Encoder]] = {
    'resnet': _resnet,
    'efficientnet': _efficientnet,
    'mobilenet': _mobilenet,
}


def make_encoder(config: ConfigDict) -> Encoder:
    """The encoder that a configuration describes."""
    model = config.model
    stem = model.stem
    if stem == 'auto':
        stem = 'cifar' if config.data.image_size <= CIFAR_STEM_UP_TO else 'imagenet'
    common = {name: model[name] for name in ('width', 'remat', 'mean', 'std')}
    return ENCODERS[model.encoder](model, common | {'stem': stem, 'dtype': jnp.dtype(model.dtype)})


def make_model(config: ConfigDict, num_classes: int) -> SimCLR:
    """The model that a configuration describes. With `num_classes` 0 it has no probe."""
    dtype = jnp.dtype(config.model.dtype)
    head = ProjectionHead(
        kind=config.head.kind,
        batch_norm=config.head.batch_norm,
        layers=config.head.layers,
        out_dim=config.head.out_dim,
        hidden_dim=config.head.hidden_dim or None,
        dtype=dtype,
    )
    return SimCLR(encoder=make_encoder(config), head=head, num_classes=num_classes if config.probe else 0, dtype=dtype)


def projection_width(config: ConfigDict) -> int:
    """Values of a projection, which is the representation where there is no head."""
    return make_encoder(config).feature_width if config.head.kind == 'none' else config.head.out_dim


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network that a student learns from, without its arrays.

    Attributes:
        config: Configuration of its pretraining.
        num_classes: Classes of its classifier, 0 without one.
        head_layer: Index in [h, output of the head's layer 1, ...] of the features that are classified.
        directory: Directory of its checkpoints.
        learnt: Encoder, data set and label budget of the protocol that trained it, such as 'simclr cifar10 10%'. '' for
            a run.
    """

    config: ConfigDict
    num_classes: int
    head_layer: int = 0
    directory: str = ''
    learnt: str = ''

    def classifier(self) -> Classifier:
        """Encoder, layers of the head and classifier, for distillation."""
        model = make_model(self.config, 0)
        return Classifier(model.encoder, model.head, self.num_classes, self.head_layer, dtype=model.dtype)

    def projector(self) -> SimCLR:
        """Encoder and projection head, for DisCo. Nothing is dropped at random."""
        return make_model(with_values(self.config, {'model.stochastic_depth': 0.0, 'model.dropout': 0.0}), 0)

    def model(self, task: str) -> Classifier | SimCLR:
        """The part of the network that a task needs."""
        return self.classifier() if task == 'distill' else self.projector()

    def shapes(self, task: str) -> dict[str, Any]:
        """Shapes of the variables that a task needs, {'params': ..., 'batch_stats': ...}."""
        size = self.config.data.image_size
        images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
        init = functools.partial(self.model(task).init, train=False)
        return jax.eval_shape(init, jax.random.key(0), images)
