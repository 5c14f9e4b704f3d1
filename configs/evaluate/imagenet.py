"""ImageNet: linear evaluation by SGD and semi-supervised fine-tuning, with the papers' settings.

    simclr evaluate --workdir=gs://BUCKET/imagenet --config=configs/evaluate/imagenet.py:v1,labels=1%

| argument      | settings                                                                          |
|---------------|-----------------------------------------------------------------------------------|
| v1,labels=1%  | SimCLR (arXiv 2002.05709, appendix B.5 and B.6). v1 is the default.               |
| v2,labels=10% | SimCLRv2 (arXiv 2006.10029, appendix B.4): fine-tuning from layer 1 of the head.  |

`labels` is 1%, 10% (the default) or all. Linear evaluation runs with all labels only.

Hardware: GPUs or TPUs, like those of the pretraining. None of these was run here, so there are no hours. Published
results of linear evaluation are in configs/imagenet.py.
"""

from simclr_jax.config import ConfigError, base_evaluation
from simclr_jax.config.overrides import parse_argument

EPOCHS = {'1%': 60.0, '10%': 30.0, 'all': 30.0}


def get_config(arg=''):
    """Argument: v1 (default) or v2, then labels=1%, labels=10% or labels=all."""
    version, _, rest = arg.partition(',')
    if '=' in version:
        version, rest = 'v1', arg
    labels = parse_argument(rest, {'labels': '10%'})['labels']
    if version not in ('', 'v1', 'v2') or labels not in EPOCHS:
        raise ConfigError([f"config argument '{arg}': must be v1 or v2, and labels=1%, 10% or all: v2,labels=1%"])

    config = base_evaluation()
    config.labels = (labels,)
    config.protocols = ('linear_sgd', 'finetune') if labels == 'all' else ('finetune',)
    config.finetune.epochs = EPOCHS[labels]
    if version == 'v2':
        config.finetune.head_layer = 1
        config.finetune.batch_size = 1024
        config.finetune.optimizer = 'lars'
        config.finetune.learning_rate = 0.005
        config.finetune.scaling = 'sqrt'
    return config
