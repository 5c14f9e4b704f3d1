"""Every protocol on CIFAR-10, in lengths that two cores can do (argument `cpu`) or the papers' (none)."""

from simclr_jax.config import ConfigError, base_evaluation
from simclr_jax.config.evaluation import FROZEN, TRAINED

# Epochs of each protocol that trains, on two cores.
CPU_EPOCHS = {'linear_sgd': 2.0, 'finetune': 1.0, 'multihead': 2.0}


def get_config(arg=''):
    """All protocols; `cpu`: with few epochs."""
    if arg not in ('', 'cpu'):
        raise ConfigError([f"config argument '{arg}': must be cpu, or nothing"])
    config = base_evaluation()
    config.protocols = (*FROZEN, 'measures', *TRAINED)
    config.labels = ('1%', '10%', 'all')
    config.baselines = ('untrained',)
    config.svm.layers = ('h', 'feature5')
    config.draws = 3
    config.linear_sgd.batch_size = 512
    config.finetune.batch_size = 256
    if arg == 'cpu':
        for protocol, epochs in CPU_EPOCHS.items():
            config[protocol].epochs = epochs
        config.multihead.milestones = (1.0, 1.5)
    return config
