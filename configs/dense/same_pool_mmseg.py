"""mmsegmentation's ResNet with the max pooling of the exported network, registered as SamePoolResNet."""

from mmseg.models.backbones import ResNet
from mmseg.registry import MODELS
from simclr_resnet import max_pool_of  # the file beside the exported weights


@MODELS.register_module()
class SamePoolResNet(ResNet):
    """ResNet without the deep stem. mmsegmentation's ResNetV1c is another network."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.maxpool = max_pool_of(settings['init_cfg']['checkpoint'])
