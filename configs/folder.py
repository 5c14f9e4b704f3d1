"""A folder of your own images, with or without labels.

    simclr train --config=configs/folder.py:PATH --workdir=runs/mine

PATH holds JPEG, PNG or WebP files, at any depth. Without `data.eval_split` all of them are for training; if
PATH has the sub-folders train/ and test/ (or any other names), set data.split and data.eval_split to those
names. Where every image lies in one sub-folder a class, the sub-folders' names are the labels of kNN and
probe.
"""

from ml_collections import ConfigDict

from simclr_jax.config import base_config


def get_config(arg: str = '') -> ConfigDict:
    """Argument: the folder; it can also be given as --config.data.path."""
    config = base_config()
    config.data.source = 'folder'
    config.data.name = ''
    config.data.path = arg
    config.data.split = ''
    config.data.eval_split = ''
    config.model.depth = 50
    config.batch_size = 256
    config.train_epochs = 200.0
    config.warmup_epochs = 10.0
    config.optimizer.weight_decay = 1e-6
    return config
