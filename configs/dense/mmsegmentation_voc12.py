"""FCN of output stride 8 on PASCAL VOC 2012 and its additional annotations, for mmsegmentation 1, see README.md."""

_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py'
custom_imports = dict(imports=['same_pool_mmseg'])

model = dict(
    # The encoder takes RGB in [0, 1].
    data_preprocessor=dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0], bgr_to_rgb=True),
    pretrained=None,
    backbone=dict(
        type='SamePoolResNet', depth=50, init_cfg=dict(type='Pretrained', checkpoint='exports/r50/model.pth')
    ),
)
