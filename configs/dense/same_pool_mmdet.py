"""mmdetection's ResNet with the max pooling of the exported network, registered as SamePoolResNet."""

from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from simclr_resnet import max_pool_of  # the file beside the exported weights


@MODELS.register_module()
class SamePoolResNet(ResNet):
    """The ResNet of mmdetection. Its parameters have the names of torchvision."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.maxpool = max_pool_of(settings['init_cfg']['checkpoint'])
