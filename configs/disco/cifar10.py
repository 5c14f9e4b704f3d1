"""DisCo on CIFAR-10: contrastive pretraining of a student whose projections follow those of a teacher.

    simclr train --config=configs/disco/cifar10.py:cpu --workdir=runs/student --config.teacher.path=runs/cifar10

The teacher is the work directory of a pretraining, by configs/cifar10.py for example.

| argument | student                 | contrastive loss              | epochs | source of the settings              |
|----------|-------------------------|-------------------------------|--------|-------------------------------------|
| r18      | ResNet-18 (the default) | InfoNCE, queue of 4,096 keys  | 200    | arXiv 2104.09124, the queue and the |
|          |                         |                               |        | views for CIFAR-10                  |
| cpu      | quarter-width ResNet-18 | NT-Xent without a queue       | 1      | chosen for two CPU cores            |

--config.loss_scale=0 leaves the contrastive loss out, so that the student follows the teacher alone.
"""

from ml_collections import ConfigDict

from simclr_jax.config import ConfigError, base_config


def get_config(arg: str = 'r18') -> ConfigDict:
    """Argument: r18 (default) or cpu."""
    arg = arg or 'r18'
    if arg not in ('r18', 'cpu'):
        raise ConfigError([f"config argument '{arg}': must be r18 or cpu"])
    config = base_config()
    config.task = 'disco'
    config.data.name = 'cifar10'
    config.data.eval_split = 'test'
    config.data.image_size = 32
    config.augment.views = ('crop flip jitter drop', 'crop flip jitter drop')
    config.augment.jitter.strength = 0.5
    config.model.depth = 18
    config.head.layers = 2
    config.head.hidden_dim = 2048
    config.head.batch_norm = False
    config.loss_scale = 1.0
    config.knn.k = (20, 200)
    if arg == 'cpu':
        config.model.width = 0.25
        config.batch_size = 128
        config.train_epochs = 1.0
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
    config.batch_size = 512
    config.train_epochs = 200.0
    config.warmup_epochs = 0.0
    config.loss.name = 'info_nce'
    config.loss.queue_size = 4096
    config.loss.temperature = 0.2
    config.optimizer.name = 'sgd'
    config.optimizer.learning_rate = 0.03
    config.optimizer.scaling = 'linear'
    config.knn.every_epochs = 20.0
    return config
