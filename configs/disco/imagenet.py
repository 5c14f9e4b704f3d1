"""DisCo on ImageNet with the published settings (arXiv 2104.09124, section 4).

    simclr train --config=configs/disco/imagenet.py --workdir=gs://BUCKET/r18 --config.teacher.path=gs://BUCKET/r50
    simclr train --config=configs/disco/imagenet.py --workdir=gs://BUCKET/b0 --config.teacher.path=gs://BUCKET/r50 \\
      --config.model.encoder=efficientnet

The teacher is the work directory of a pretraining with a projection of 128 values, or converted weights that have their
projection head. The student's wide head is left out of every evaluation. None of this was run to its end here.
Published results, top-1 accuracy of linear evaluation in percent after 200 epochs:

| student   | alone | ResNet-50 (67.4) as teacher | ResNet-152 (74.1) as teacher |
|-----------|-------|-----------------------------|------------------------------|
| ResNet-18 | 52.5  | 60.6                        | 65.5                         |
| ResNet-34 | 57.4  | 62.5                        | 68.1                         |
"""

from ml_collections import ConfigDict

from simclr_jax.config import base_config
from simclr_jax.config.overrides import parse_argument

# MoCo v2's view (arXiv 2003.04297).
VIEW = 'crop flip jitter drop blur'


def get_config(arg: str = '') -> ConfigDict:
    """Argument: any of depth, epochs, batch as key=value."""
    settings = parse_argument(arg, {'depth': 18, 'epochs': 200.0, 'batch': 256})
    config = base_config()
    config.task = 'disco'
    config.batch_size = settings['batch']
    config.train_epochs = settings['epochs']
    config.warmup_epochs = 0.0
    config.augment.views = (VIEW, VIEW)
    config.augment.jitter.strength = 0.5
    config.augment.crop.area = (0.2, 1.0)
    config.model.depth = settings['depth']
    config.model.dtype = 'bfloat16'
    config.head.layers = 2
    config.head.hidden_dim = 2048
    config.head.batch_norm = False
    config.loss.name = 'info_nce'
    config.loss.queue_size = 65536
    config.loss.temperature = 0.2
    config.loss_scale = 1.0
    config.optimizer.name = 'sgd'
    config.optimizer.learning_rate = 0.03
    config.optimizer.scaling = 'linear'
    return config
