"""The table of protocols agrees with the configuration and says what each can do."""

from simclr_jax.config import base_evaluation
from simclr_jax.config.evaluation import PROTOCOLS as NAMES
from simclr_jax.evaluation.protocols import PROTOCOLS


def test_the_configuration_names_every_protocol_once():
    assert sorted(protocol.name for protocol in PROTOCOLS) == sorted(NAMES)
    assert len(set(NAMES)) == len(NAMES)


def test_protocols_that_train_have_their_settings():
    config = base_evaluation()
    for name in ('linear_sgd', 'finetune', 'multihead'):
        assert config[name].epochs > 0
