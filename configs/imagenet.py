"""ImageNet through TensorFlow Datasets, with the published settings.

    simclr train --config=configs/imagenet.py --workdir=gs://BUCKET/imagenet

| configuration                                             | run                             |
|-----------------------------------------------------------|---------------------------------|
| --config=configs/imagenet.py                              | SimCLRv2, ResNet-50, 800 epochs |
| --config=configs/imagenet.py:v1                           | SimCLR, ResNet-50, 1000 epochs  |
| --config=configs/imagenet.py:v1,epochs=100                | SimCLR, ResNet-50, 100 epochs   |
| --config=configs/imagenet.py:v2,depth=152,width=3,sk=true | SimCLRv2's largest network      |
| --config=configs/imagenet.py:v1,batch=256,epochs=200      | SimCLR on one machine           |

None of these was run to its end here. Published results, top-1 accuracy of linear evaluation in percent:

| run                             | linear | source                       |
|---------------------------------|--------|------------------------------|
| SimCLR, ResNet-50, 100 epochs   | 64.5   | arXiv 2002.05709             |
| SimCLR, ResNet-50, 1000 epochs  | 69.3   | arXiv 2002.05709             |
| SimCLRv2, ResNet-50, 800 epochs | 71.7   | arXiv 2006.10029             |
| SimCLRv2, ResNet-152 3x+SK      | 79.8   | arXiv 2006.10029             |

Hardware: SimCLR was trained on 32 to 128 TPU v3 cores, depending on the batch size. On 128 cores with a batch of 4096,
100 epochs of the ResNet-50 took about 1.5 hours (published, section 2.2). Larger runs take longer in proportion to
epochs and multiplications. `simclr plan` computes memory and time for a TPU topology.
"""

from ml_collections import ConfigDict

from simclr_jax.config import ConfigError, base_config
from simclr_jax.config.overrides import parse_argument


def get_config(arg: str = '') -> ConfigDict:
    """Argument: 'v1' or 'v2', then any of depth, width, sk, epochs, batch as key=value."""
    version, _, rest = arg.partition(',')
    if '=' in version:
        version, rest = '', arg
    version = version or 'v2'
    if version not in ('v1', 'v2'):
        raise ConfigError([f"config argument '{version}': must begin with v1 or v2"])
    epochs = 1000.0 if version == 'v1' else 800.0
    settings = parse_argument(rest, {'depth': 50, 'width': 1.0, 'sk': False, 'epochs': epochs, 'batch': 4096})

    config = base_config()
    config.batch_size = settings['batch']
    config.train_epochs = settings['epochs']
    config.model.depth = settings['depth']
    config.model.width = settings['width']
    config.model.sk_ratio = 0.0625 if settings['sk'] else 0.0
    config.model.dtype = 'bfloat16'
    config.warmup_epochs = 0.05 * settings['epochs']
    if version == 'v1':  # the paper's section 2.2 and appendix B.1
        config.head.layers = 2
        config.warmup_epochs = 10.0
        config.optimizer.learning_rate = 0.3
        config.optimizer.scaling = 'linear'
        config.optimizer.weight_decay = 1e-6
        config.augment.jitter.brightness_mode = 'add'
    return config
