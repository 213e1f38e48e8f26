"""Mask R-CNN, iViT-Nano, COCO 3x multi-scale, as mask_rcnn_ivit_3x.py. Box and mask AP: not run."""

_base_ = 'mask_rcnn_ivit_3x.py'

model = dict(
    backbone=dict(arch='nano', drop_path_rate=0.0, init_cfg=None),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
