"""Distillation on ImageNet with the settings of SimCLRv2 (arXiv 2006.10029, section 2 and appendix B).

    simclr train --config=configs/distill/imagenet.py --workdir=gs://BUCKET/r50 \\
      --config.teacher.path=gs://BUCKET/r152_3x_sk1/trained/finetune-NAME
    simclr train --config=configs/distill/imagenet.py:self,depth=152,width=3,sk=true \\
      --workdir=gs://BUCKET/r152_self --config.teacher.path=gs://BUCKET/r152_3x_sk1/trained/finetune-NAME

| argument    | distillation                                     | temperature |
|-------------|--------------------------------------------------|-------------|
| (none)      | a large teacher into a smaller student           | 1           |
| self        | a teacher into a student of its own architecture | 0.1         |

The published order for the best small network is: pretrain the large one, fine-tune it on 1 % or 10 % of the labels
from layer 1 of its head, distil it into itself, distil that into the small network. None of this was run to its end
here.
Published results, top-1 accuracy of the student in percent with 1 % and 10 % of the labels:

| student                                | 1 %  | 10 % |
|----------------------------------------|------|------|
| ResNet-50, fine-tuned                  | 57.9 | 68.4 |
| ResNet-50, distilled from R152 3x + SK | 73.9 | 77.5 |
"""

from ml_collections import ConfigDict

from simclr_jax.config import ConfigError, base_config
from simclr_jax.config.overrides import parse_argument


def get_config(arg: str = '') -> ConfigDict:
    """Argument: nothing or 'self', then any of depth, width, sk, epochs, batch as key=value."""
    kind, _, rest = arg.partition(',')
    if '=' in kind:
        kind, rest = '', arg
    if kind not in ('', 'self'):
        raise ConfigError([f"config argument '{kind}': must begin with self, or with key=value"])
    settings = parse_argument(rest, {'depth': 50, 'width': 1.0, 'sk': False, 'epochs': 400.0, 'batch': 4096})
    config = base_config()
    config.task = 'distill'
    config.distill.temperature = 0.1 if kind == 'self' else 1.0
    config.augment.views = ('crop flip',)
    config.head.kind = 'none'
    config.batch_size = settings['batch']
    config.train_epochs = settings['epochs']
    config.warmup_epochs = 0.05 * settings['epochs']
    config.model.depth = settings['depth']
    config.model.width = settings['width']
    config.model.sk_ratio = 0.0625 if settings['sk'] else 0.0
    config.model.dtype = 'bfloat16'
    return config
