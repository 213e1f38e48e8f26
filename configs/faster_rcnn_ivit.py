"""Faster R-CNN, iViT-Tiny, FPN, COCO 2017, 1x (12 epochs), warm start from CAFormer-S18.

    tools/dist_train.sh configs/faster_rcnn_ivit.py 8        8 GPUs x 2 images
    tools/train.py configs/faster_rcnn_ivit.py --auto-scale-lr        any other number

Box AP: not run.
"""

_base_ = [
    '_base_/faster_rcnn_fpn.py',
    '_base_/coco_detection.py',
    '_base_/runtime_detection.py',
]

model = dict(
    backbone=dict(
        type='mmivit.IViT',
        arch='tiny',
        drop_path_rate=0.1,
        # Without a network: tools/convert_weights.py elsewhere, or init_cfg=None (README, Weights).
        init_cfg=dict(
            type='mmivit.PretrainedIViT',
            checkpoint='timm://caformer_s18.sail_in22k_ft_in1k',
        ),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    # No decay on norms, biases, scales (all one-dimensional) and on the interaction, which
    # starts at the identity and would be pulled to zero.
    paramwise_cfg=dict(
        flat_decay_mult=0.0,
        custom_keys=dict(interaction=dict(decay_mult=0.0)),
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

auto_scale_lr = dict(enable=False, base_batch_size=16)  # 8 GPUs x 2 images
