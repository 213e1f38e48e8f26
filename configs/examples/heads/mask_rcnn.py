"""Mask R-CNN on the drawn data set, so small that a CPU core trains it in a minute.

    python tools/make_shapes.py data/shapes
    python tools/train.py configs/examples/heads/mask_rcnn.py

The detectors of this folder have one backbone and neck, and a head of each family that
tools/export.py knows. For a score see mask_rcnn_ivit_shapes.py.
"""

_base_ = '../../mask_rcnn_ivit_shapes.py'

image_size = (96, 96)
model = dict(
    backbone=dict(arch=dict(_delete_=True, depths=(1, 1, 1, 1), widths=(32, 64, 128, 256))),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=100, max_per_img=50),
        rcnn=dict(sampler=dict(num=16)),
    ),
)

resize = dict(type='Resize', scale=image_size, keep_ratio=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    resize,
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
test_pipeline = _base_.test_pipeline
test_pipeline[1] = resize
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

max_epochs = 1
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(end=50)
param_scheduler[1].update(T_max=max_epochs)
train_cfg = dict(max_epochs=max_epochs, val_interval=2)  # not judged
auto_scale_lr = dict(base_batch_size=4)
