"""Mask R-CNN, iViT-Base, COCO 3x multi-scale, as mask_rcnn_ivit_3x.py. Box and mask AP: not run."""

_base_ = 'mask_rcnn_ivit_3x.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint='timm://caformer_b36.sail_in22k_ft_in1k'),
    ),
    neck=dict(in_channels=[128, 256, 512, 768]),
)
optim_wrapper = dict(
    constructor='mmivit.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9),
)
