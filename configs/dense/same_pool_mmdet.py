"""mmdetection's ResNet with the max pooling of SimCLR's networks, registered as SamePoolResNet."""

from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from simclr_resnet import SameMaxPool2d  # the file beside the exported weights


@MODELS.register_module()
class SamePoolResNet(ResNet):
    """The ResNet of mmdetection. Its parameters have the names of torchvision."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.maxpool = SameMaxPool2d()
