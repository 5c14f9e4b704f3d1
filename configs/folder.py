"""A folder of your own images, with or without labels.

    simclr train --config=configs/folder.py:PATH --workdir=runs/mine

PATH holds image files (JPEG, PNG, WebP, BMP, GIF), at any depth. By default all of them are for training. If PATH has
the sub-folders train/ and test/ (or any other names), set data.split and data.eval_split to those names. If every image
lies in a sub-folder of its class, the names of the sub-folders are the labels for kNN and probe.

Hardware, hours and result depend on your images. The default is a ResNet-50 on 224-pixel views for 200 epochs, which
needs a GPU or TPU. `simclr plan` with the same options tells the memory and time before you start. The settings are
those of SimCLR with a small batch and were not tuned for any folder.
"""

from ml_collections import ConfigDict

from simclr_jax.config import base_config


def get_config(arg: str = '') -> ConfigDict:
    """Argument: path of the folder. It can also be given as --config.data.path."""
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
