"""Mask R-CNN, iViT-Medium, COCO 1x; the rest as in mask_rcnn_ivit.py. Box and mask AP: not run."""

_base_ = 'mask_rcnn_ivit.py'

model = dict(
    backbone=dict(
        arch='medium',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='timm://caformer_m36.sail_in22k_ft_in1k'),
    ),
    neck=dict(in_channels=[96, 192, 384, 576]),
)
