"""Mask R-CNN, iViT-Small, COCO 3x multi-scale, as mask_rcnn_ivit_3x.py.

Box and mask AP: not run.
"""

_base_ = 'mask_rcnn_ivit_3x.py'

model = dict(
    backbone=dict(arch='small', drop_path_rate=0.3),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
