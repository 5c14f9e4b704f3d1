"""Segmentation of PASCAL VOC 2012 by a fully convolutional network, with the settings of mmselfsup.

    simclr evaluate --workdir=gs://BUCKET/imagenet --config=configs/evaluate/segmentation.py:/data/VOCdevkit/VOC2012

The path is that of VOC2012 with SegmentationClassAug/ beside SegmentationClass/, and ImageSets/Segmentation/ with
trainaug.txt: the 10,582 images whose masks were added by Hariharan et al. (ICCV 2011). The 1,449 images of val are
tested. The encoder is fine-tuned. --config.segmentation.after_block=4 freezes it.

| published                                         | here                                                         |
|---------------------------------------------------|--------------------------------------------------------------|
| FCN head with 512 channels, output stride 8       | the same, without dropout and without an auxiliary head      |
| SGD, momentum 0.9, weight decay 5e-4, batch 16    | the same with Nesterov's momentum. Batch norms do not decay. |
| rate 0.01 with a polynomial of power 0.9, 20k     | rate 0.01 with a cosine, 20,000 steps                        |
| scale 0.5 to 2, crops of 512, flip, colours       | the same without colours                                     |
| test images at a shorter side of 512              | at a longer side of 683, which is the same for 4:3           |

Oxford-IIIT Pet from TensorFlow Datasets, without a file. Its classes are pet, background and border:

    simclr evaluate --workdir=runs/imagenet --protocols=segmentation --config.segmentation.tfds=oxford_iiit_pet \\
      --config.segmentation.first_class=1 --config.segmentation.names=pet,background,border

Hardware: one GPU is enough. Neither was run to its end here, so there are no hours and no results.
"""

from simclr_jax.config import ConfigError, base_evaluation

CLASSES = (
    'background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable',
    'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor',
)  # fmt: skip


def get_config(arg=''):
    """Argument: path of VOC2012."""
    if not arg:
        raise ConfigError(["config argument '': give the path of VOC2012, segmentation.py:/data/VOCdevkit/VOC2012"])
    config = base_evaluation()
    config.protocols = ('segmentation',)
    segmentation = config.segmentation
    segmentation.images = f'{arg}/JPEGImages'
    segmentation.masks = f'{arg}/SegmentationClassAug'
    segmentation.lists = f'{arg}/ImageSets/Segmentation/{{split}}.txt'
    segmentation.train_split, segmentation.test_split = 'trainaug', 'val'
    segmentation.names = CLASSES
    segmentation.test_size = 683
    return config
