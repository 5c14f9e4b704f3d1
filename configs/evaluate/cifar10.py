"""Every protocol that needs no masks on CIFAR-10, for a work directory of configs/cifar10.py.

    simclr evaluate --workdir=runs/cifar10 --config=configs/evaluate/cifar10.py:cpu

Without an argument, the protocols that train have the papers' lengths and need a GPU or TPU. With `cpu` they have the
few epochs of CPU_EPOCHS, for two CPU cores. `--protocols=knn,linear` selects some of the protocols. The hours depend on
the protocols and were not measured as a whole.

Measured here with `cpu` on two CPU cores, for the encoder of configs/cifar10.py:cpu (top-1 in percent, all labels):

| protocol                           | untrained encoder | SimCLR |
|------------------------------------|-------------------|--------|
| kNN, k = 20                        | 28.9              | 45.7   |
| logistic regression                | 34.0              | 46.5   |
| linear evaluation by SGD, 2 epochs | 17.2              | 39.6   |
"""

from simclr_jax.config import ConfigError, base_evaluation
from simclr_jax.config.evaluation import FROZEN, TRAINED

# Epochs of each protocol that trains, for two CPU cores.
CPU_EPOCHS = {'linear_sgd': 2.0, 'finetune': 1.0, 'multihead': 2.0}


def get_config(arg=''):
    """Argument: empty, or cpu for few epochs."""
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
