"""The table of protocols agrees with the configuration and says what each can do."""

import dataclasses

import numpy as np
import pytest

from simclr_jax import distributed
from simclr_jax.config import base_evaluation
from simclr_jax.config.evaluation import PROTOCOLS as NAMES
from simclr_jax.config.label_budget import Labels
from simclr_jax.data.spec import Examples, Files
from simclr_jax.evaluation.features import Features
from simclr_jax.evaluation.protocols import PROTOCOLS, on_features, trainings
from simclr_jax.probes import linear_model


def test_the_configuration_names_every_protocol_once():
    assert sorted(protocol.name for protocol in PROTOCOLS) == sorted(NAMES)
    assert len(set(NAMES)) == len(NAMES)


def test_protocols_that_train_have_their_settings():
    config = base_evaluation()
    for name in ('linear_sgd', 'finetune', 'multihead'):
        assert config[name].epochs > 0


def test_a_training_on_other_labels_is_another_one():
    learnt = Examples('train', 2, Files(['a/1.png', 'b/1.png']), np.array([0, 1], np.int32), ('a', 'b'))
    others = [
        dataclasses.replace(learnt, labels=np.array([1, 0], np.int32)),
        dataclasses.replace(learnt, class_names=('a', 'c')),
        dataclasses.replace(learnt, content=Files(['a/2.png', 'b/1.png'])),
    ]
    assert len({trainings.digest_of_labels(examples) for examples in [learnt, *others]}) == 4
    assert trainings.digest_of_labels(dataclasses.replace(learnt)) == trainings.digest_of_labels(learnt)


@pytest.mark.parametrize('limit, by_first', [(64, ['first']), (63, [])])
def test_the_first_process_fits_for_all_what_is_small(limit, by_first, monkeypatch):
    """Bank and held-out examples count together: 64 bytes of features."""
    part = Features(np.ones((4, 2), np.float32), np.arange(4, dtype=np.int32) % 2, np.arange(4))
    material = on_features.Material(part, part, part, 2, base_evaluation(), lambda scores, labels: 0.0)
    called = []
    monkeypatch.setattr(linear_model.jax, 'process_count', lambda: 2)
    monkeypatch.setattr(linear_model, 'OWN_BYTES', limit)
    monkeypatch.setattr(distributed, 'from_first', lambda action, mistakes: called.append('first') or action())
    grades = on_features._of_the_job(material, lambda: on_features.classify_by_knn(material, Labels()))
    assert called == by_first
    assert grades
