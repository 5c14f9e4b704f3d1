"""Distillation on CIFAR-10: a student learns the class probabilities of a fine-tuned teacher (SimCLRv2, section 2).

    simclr train --config=configs/distill/cifar10.py:cpu --workdir=runs/student \\
      '--config.teacher.path=runs/cifar10/trained/finetune-*10%*' --config.init_from=runs/small

The teacher is a directory in trained/ of a work directory, made by `simclr evaluate --protocols=finetune`, or the work
directory of another distilled student. No labels are read, unless distill.alpha is below 1.

| argument | student                 | temperature | epochs | source of the settings                                |
|----------|-------------------------|-------------|--------|-------------------------------------------------------|
| r18      | ResNet-18 (the default) | 1           | 200    | arXiv 2006.10029, with the rate of configs/cifar10.py |
| self     | ResNet-18               | 0.1         | 200    | the same, for a teacher of the same architecture      |
| cpu      | quarter-width ResNet-18 | 1           | 1      | chosen for two CPU cores                              |
"""

from ml_collections import ConfigDict

from simclr_jax.config import ConfigError, base_config


def get_config(arg: str = 'r18') -> ConfigDict:
    """Argument: r18 (default), self or cpu."""
    arg = arg or 'r18'
    if arg not in ('r18', 'self', 'cpu'):
        raise ConfigError([f"config argument '{arg}': must be r18, self or cpu"])
    config = base_config()
    config.task = 'distill'
    config.data.name = 'cifar10'
    config.data.eval_split = 'test'
    config.data.image_size = 32
    config.augment.views = ('crop flip',)
    config.distill.temperature = 0.1 if arg == 'self' else 1.0
    config.head.kind = 'none'
    config.model.depth = 18
    config.batch_size = 512
    config.train_epochs = 200.0
    config.warmup_epochs = 10.0
    config.optimizer.learning_rate = 1.0
    config.optimizer.scaling = 'linear'
    config.knn.every_epochs = 20.0
    config.knn.k = (20, 200)
    if arg == 'cpu':
        config.model.width = 0.25
        config.batch_size = 128
        config.train_epochs = 1.0
        config.warmup_epochs = 0.1
        config.optimizer.name = 'adam'
        config.optimizer.learning_rate = 2e-3
        config.optimizer.scaling = 'none'
        config.optimizer.weight_decay = 1e-6
        config.knn.every_epochs = 1.0
        config.knn.bank_images = 2500
        config.checkpoint_every_epochs = 0.5
        config.log_every_steps = 50
    return config
