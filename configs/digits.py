"""scikit-learn's 1,797 handwritten digits, 8 x 8 grey pixels: two minutes on two cores, no network."""

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
    config.data.image_size = 16
    # A digit has no colour, and its mirror image is another sign.
    config.augment.views = ('crop noise', 'crop noise')
    config.augment.crop.area = (0.4, 1.0)
    config.augment.noise.std = (0.0, 0.1)
    config.model.depth = 18
    config.model.width = 0.25
    config.head.layers = 2
    config.loss.temperature = 0.2
    config.batch_size = 128
    config.train_epochs = 60.0
    config.warmup_epochs = 5.0
    config.optimizer.learning_rate = 1.0
    config.optimizer.scaling = 'linear'
    config.knn.every_epochs = 10.0
    config.log_every_steps = 20
    config.checkpoint_every_epochs = 20.0
    return config
