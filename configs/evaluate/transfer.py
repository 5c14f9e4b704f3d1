"""The transfer experiments of SimCLR (2002.05709, appendix B.8) on its twelve data sets.

--config=configs/evaluate/transfer.py:linear      logistic regression on frozen features at 224 pixels
--config=configs/evaluate/transfer.py:finetune    20,000 steps for each pair of 7 learning rates and 8 decays
--dataset=food101,pets                            some of them, or any other data set, by the same settings
"""

import numpy as np

from simclr_jax.config import ConfigError, base_evaluation
from simclr_jax.data.suite import TRANSFER_SUITE


def get_config(arg='linear'):
    """The protocol 'linear' or 'finetune'."""
    if arg not in ('', 'linear', 'finetune'):
        raise ConfigError([f"config argument '{arg}': must be linear or finetune"])
    config = base_evaluation()
    config.protocols = (arg or 'linear',)
    config.datasets = tuple(member.name for member in TRANSFER_SUITE)
    config.image_size = 224
    # Features: the short side becomes 224 pixels, then the central square. Fine-tuned: 256, then 224.
    config.crop_share = 1.0 if arg != 'finetune' else 0.875
    finetune = config.finetune
    finetune.steps = 20_000
    finetune.batch_size = 256
    finetune.scaling = 'none'
    finetune.batch_norm_momentum = 0.0
    finetune.grid_learning_rates = tuple(float(rate) for rate in np.logspace(-4, -1, 7))
    finetune.grid_weight_decays = (0.0, *(float(decay) for decay in np.logspace(-6, -3, 7)))
    return config
