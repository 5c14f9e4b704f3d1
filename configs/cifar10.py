"""CIFAR-10 through TFDS.

--config=configs/cifar10.py:r18     ResNet-18, 1000 epochs (the reference's README)
--config=configs/cifar10.py:r50     ResNet-50, 1000 epochs (SimCLR, appendix B.9)
--config=configs/cifar10.py:cpu     quarter-width ResNet-18, a few epochs: half an hour on two cores
"""

from ml_collections import ConfigDict

from simclr_jax.config import ConfigError, base_config


def get_config(arg: str = 'r18') -> ConfigDict:
    """Argument: r18 (default), r50 or cpu."""
    arg = arg or 'r18'
    if arg not in ('r18', 'r50', 'cpu'):
        raise ConfigError([f"config argument '{arg}': must be r18, r50 or cpu"])
    config = base_config()
    config.data.name = 'cifar10'
    config.data.eval_split = 'test'
    config.data.image_size = 32
    config.augment.views = ('crop flip jitter drop', 'crop flip jitter drop')
    config.augment.jitter.strength = 0.5
    config.loss.temperature = 0.5
    config.head.layers = 2
    config.train_epochs = 1000.0
    config.warmup_epochs = 10.0
    config.optimizer.learning_rate = 1.0
    config.optimizer.scaling = 'linear'
    config.knn.every_epochs = 20.0
    config.knn.k = (20, 200)
    if arg == 'r50':
        config.model.depth = 50
        config.batch_size = 1024
        return config
    config.model.depth = 18
    config.batch_size = 512
    if arg == 'cpu':
        config.model.width = 0.25
        # Two passes over the data are many small steps with Adam; LARS is for large batches and long runs.
        config.batch_size = 128
        config.train_epochs = 2.0
        config.warmup_epochs = 0.1
        config.loss.temperature = 0.2
        config.optimizer.name = 'adam'
        config.optimizer.learning_rate = 1e-3
        config.optimizer.scaling = 'none'
        config.optimizer.weight_decay = 1e-6
        config.knn.every_epochs = 1.0
        config.knn.bank_images = 2500
        config.checkpoint_every_epochs = 0.5
        config.log_every_steps = 50
    return config
