"""mmsegmentation's ResNet with the max pooling of SimCLR's networks, registered as SamePoolResNet."""

from mmseg.models.backbones import ResNet
from mmseg.registry import MODELS
from simclr_resnet import SameMaxPool2d  # the file beside the exported weights


@MODELS.register_module()
class SamePoolResNet(ResNet):
    """ResNet without the deep stem. mmsegmentation's ResNetV1c is another network."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.maxpool = SameMaxPool2d()
