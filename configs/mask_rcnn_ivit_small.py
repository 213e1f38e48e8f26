"""Mask R-CNN, iViT-Small, COCO 1x; the rest as in mask_rcnn_ivit.py. Box and mask AP: not run."""

_base_ = 'mask_rcnn_ivit.py'

model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint='timm://caformer_s36.sail_in22k_ft_in1k'),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
