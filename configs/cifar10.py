"""CIFAR-10 through TensorFlow Datasets.

    simclr train --config=configs/cifar10.py:cpu --workdir=runs/cifar10
    simclr train --config=configs/cifar10.py:r18 --config.train_epochs=200 --workdir=runs/cifar10_r18
    simclr train --config=configs/cifar10.py:r50 --workdir=runs/cifar10_r50

| argument | network                 | epochs | source of the settings                          |
|----------|-------------------------|--------|-------------------------------------------------|
| r18      | ResNet-18 (the default) | 1000   | README of the reference, google-research/simclr |
| r50      | ResNet-50               | 1000   | SimCLR, arXiv 2002.05709, appendix B.9          |
| cpu      | quarter-width ResNet-18 | 2      | chosen for two CPU cores                        |

Measured here, top-1 accuracy in percent with all labels, kNN with k = 20. The copy of the data went through JPEG once,
so figures are a little below those on the original.

| run                              | hardware      | time                                  | kNN  | linear |
|----------------------------------|---------------|---------------------------------------|------|--------|
| cpu                              | two CPU cores | 43 min, with other work on both cores | 45.7 | 46.5   |
| r18, stopped at epoch 152 of 200 | one H200 GPU  | 12.5 s per 1,000 steps                | 79.0 | 81.0   |

At this rate, 200 epochs of r18 take about 5 min with the compilation, and 1000 epochs about 20 min.

Published, not run here:

| run                    | by                   | kNN            | linear   |
|------------------------|----------------------|----------------|----------|
| ResNet-18, 1000 epochs | reference's README   |                | about 91 |
| ResNet-18, 200 epochs  | lightly              | 84.8 (k = 200) |          |
| ResNet-50, 1000 epochs | SimCLR, appendix B.9 |                | 94.0     |
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
        # Two passes over the data need many small steps with Adam. LARS is for large batches and long runs.
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
