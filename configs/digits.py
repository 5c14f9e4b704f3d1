"""scikit-learn's 1,797 handwritten digits, 8 x 8 grey pixels. They come with scikit-learn: nothing is downloaded.

    simclr train --config=configs/digits.py --workdir=runs/digits

| hardware (measured) | time       | kNN, k = 20, all labels | linear, all labels |
|---------------------|------------|-------------------------|--------------------|
| two CPU cores       | 2 to 3 min | about 91 %              | about 97 %         |
"""

from ml_collections import ConfigDict

from simclr_jax.config import ConfigError, base_config


def get_config(arg: str = '') -> ConfigDict:
    """Takes no argument."""
    if arg:
        raise ConfigError([f"config argument '{arg}': configs/digits.py takes none"])
    config = base_config()
    config.data.source = 'digits'
    config.data.name = ''
    config.data.eval_split = 'test'
    config.data.image_size = 12
    # A digit has no colour, and its mirror image is another sign.
    config.augment.views = ('crop noise', 'crop noise')
    config.augment.crop.area = (0.6, 1.0)
    config.augment.noise.std = (0.0, 0.1)
    config.model.depth = 18
    config.model.width = 0.25
    config.head.layers = 2
    config.loss.temperature = 0.5
    # Small and short: many steps with Adam instead of LARS, which is for large batches.
    config.batch_size = 64
    config.train_epochs = 13.0
    config.warmup_epochs = 1.0
    config.optimizer.name = 'adam'
    config.optimizer.learning_rate = 2e-3
    config.optimizer.scaling = 'none'
    config.optimizer.weight_decay = 1e-6
    config.knn.every_epochs = 5.0
    config.log_every_steps = 25
    config.checkpoint_every_epochs = 5.0
    return config
