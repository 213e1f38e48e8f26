"""Mask R-CNN, iViT-Nano, on the built-in drawn data set: `make demo`.

    python tools/make_shapes.py data/shapes
    python tools/train.py configs/mask_rcnn_ivit_shapes.py

Made for two CPU cores: 128 x 128 images, narrow neck and heads.
"""

_base_ = 'mask_rcnn_ivit.py'

# After _base_, else MMEngine takes this for a config of its other kind.
import os.path  # noqa: E402
from importlib import metadata  # noqa: E402

data_root = 'data/shapes/'
metainfo = dict(
    classes=('circle', 'square', 'triangle', 'star', 'cross'),
    palette=[(220, 20, 60), (0, 140, 255), (60, 180, 75), (255, 190, 0), (145, 30, 180)],
)
num_classes = len(metainfo['classes'])
width = 48  # channels of the neck and the heads
strides = [8, 16, 32]
norm_cfg = dict(type='BN')
roi_extractor = dict(
    out_channels=width,
    featmap_strides=strides,
    roi_layer=dict(sampling_ratio=1),
)

model = dict(
    backbone=dict(arch='nano', drop_path_rate=0.0, out_indices=(1, 2, 3), init_cfg=None),
    neck=dict(in_channels=[64, 128, 256], out_channels=width, num_outs=3, norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=width,
        feat_channels=width,
        anchor_generator=dict(scales=[4], strides=strides),
    ),
    roi_head=dict(
        bbox_roi_extractor=roi_extractor,
        bbox_head=dict(in_channels=width, fc_out_channels=256, num_classes=num_classes),
        mask_roi_extractor=roi_extractor,
        mask_head=dict(
            in_channels=width,
            conv_out_channels=width,
            num_convs=2,
            num_classes=num_classes,
            norm_cfg=norm_cfg,
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
tta_pipeline = None  # COCO's scales make no sense here

train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_training.json',
        data_prefix=dict(img='images/training/'),
        filter_cfg=dict(min_size=1),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_validation.json',
        data_prefix=dict(img='images/validation/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=os.path.join(data_root, 'annotations/instances_validation.json'))
test_evaluator = val_evaluator

max_epochs = 4
# Fused it is several times quicker; torch before 2.4 has not got that on CPUs.
fused = tuple(map(int, metadata.version('torch').split('.')[:2])) >= (2, 4)
optim_wrapper = dict(optimizer=dict(lr=8e-4, fused=fused), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        eta_min_ratio=0.01,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
default_hooks = dict(logger=dict(interval=25))
auto_scale_lr = dict(base_batch_size=8)
randomness = dict(seed=0)
