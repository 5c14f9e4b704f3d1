"""Parts of the online evaluation that no whole run shows."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from simclr_jax import sharding
from simclr_jax.config import base_config, with_values
from simclr_jax.data.spec import Decoded, Encoded, Examples
from simclr_jax.evaluation.online import online_evaluation
from support.image_files import encode


def test_the_online_knn_names_unreadable_test_images_once(capsys):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(6, dtype=np.int32) % 2
    files = [encode(image) for image in images]
    files[4] = files[4][:40]
    train = Examples('x/train', 6, Decoded(images), labels, ('a', 'b'))
    test = Examples('x/test', 6, Encoded(files), labels, ('a', 'b'))
    config = with_values(base_config(), {'data.image_size': 8, 'batch_size': 2, 'knn.k': (1,)})
    task = types.SimpleNamespace(encode=lambda variables, images: images.mean((1, 2)))
    evaluate = online_evaluation(config, task, train, test, sharding.make_mesh(jax.devices()[:1]))
    state = types.SimpleNamespace(params={'w': jnp.ones(1)}, batch_stats={})
    assert evaluate(state).keys() == {'knn_top1_k1'}
    assert capsys.readouterr().out == 'Skipped, not a readable image: x/test/4\n'
    evaluate(state)
    assert capsys.readouterr().out == ''
