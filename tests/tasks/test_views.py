"""Random numbers of a network in training."""

import jax
import numpy as np

from simclr_jax.models.efficientnet import EfficientNet
from simclr_jax.models.resnet import ResNet
from simclr_jax.tasks.views import random_numbers


def test_parts_of_a_batch_and_steps_draw_other_numbers():
    encoder, keys = EfficientNet(dropout=0.2), [jax.random.key(step) for step in range(2)]
    parts = [{'index': np.array(first)} for first in ([4, 7], [7, 4])]
    found = [random_numbers(encoder, part, key)['rngs']['dropout'] for part in parts for key in keys]
    assert len({jax.random.key_data(key).tobytes() for key in found}) == 4


def test_encoders_that_draw_nothing_get_no_key():
    for encoder in (ResNet(18), EfficientNet()):
        assert random_numbers(encoder, {}, jax.random.key(0)) == {}
