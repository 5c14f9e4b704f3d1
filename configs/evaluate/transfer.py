"""The transfer experiments of SimCLR (arXiv 2002.05709, appendix B.8) on its twelve data sets.

    simclr evaluate --workdir=gs://BUCKET/imagenet --config=configs/evaluate/transfer.py:linear

| option   | meaning                                                                                |
|----------|----------------------------------------------------------------------------------------|
| linear   | logistic regression on frozen features at 224 pixels, the default                      |
| finetune | fine-tuning for 20,000 steps, for each pair of 7 learning rates and 8 weight decays    |

--dataset=food101,pets selects some of the data sets, or evaluates any other one with the same settings.

Hardware: one GPU or TPU is enough for `linear`. `finetune` trains 56 times per data set and needs several. Neither was
run to its end here, so there are no hours. Published results: SimCLR, table 8, for a ResNet-50 4x.
"""

import numpy as np

from simclr_jax.config import ConfigError, base_evaluation
from simclr_jax.data.suite import TRANSFER_SUITE


def get_config(arg='linear'):
    """Argument: linear (default) or finetune."""
    if arg not in ('', 'linear', 'finetune'):
        raise ConfigError([f"config argument '{arg}': must be linear or finetune"])
    config = base_evaluation()
    config.protocols = (arg or 'linear',)
    config.datasets = tuple(member.name for member in TRANSFER_SUITE)
    config.image_size = 224
    # For features, the short side becomes 224 pixels, then the central square is cut. For fine-tuning: 256, then 224.
    config.crop_share = 1.0 if arg != 'finetune' else 0.875
    finetune = config.finetune
    finetune.steps = 20_000
    finetune.batch_size = 256
    finetune.scaling = 'none'
    finetune.batch_norm_momentum = 0.0
    finetune.grid_learning_rates = tuple(float(rate) for rate in np.logspace(-4, -1, 7))
    finetune.grid_weight_decays = (0.0, *(float(decay) for decay in np.logspace(-6, -3, 7)))
    return config
