"""Mask R-CNN, iViT-Base, COCO 1x; the rest as in mask_rcnn_ivit.py. Box and mask AP: not run."""

_base_ = 'mask_rcnn_ivit.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.4,
        init_cfg=dict(checkpoint='timm://caformer_b36.sail_in22k_ft_in1k'),
    ),
    neck=dict(in_channels=[128, 256, 512, 768]),
)
