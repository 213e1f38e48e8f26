"""ATSS, a dense detector, on boxes of your own: data and schedule of your_dataset_boxes.py.

    python tools/train.py configs/examples/your_dataset_atss.py

A step on a CPU takes a quarter of that of Faster R-CNN with 512 regions.
"""

_base_ = 'your_dataset_boxes.py'

width = _base_.width
data_preprocessor, backbone = _base_.model.data_preprocessor, _base_.model.backbone
model = dict(
    _delete_=True,
    type='ATSS',
    data_preprocessor=data_preprocessor,
    backbone=dict(out_indices=(1, 2, 3), **backbone),
    neck=dict(
        type='FPN',
        in_channels=_base_.model.neck.in_channels[1:],
        out_channels=width,
        add_extra_convs='on_output',
        num_outs=5,
    ),
    bbox_head=dict(
        type='ATSSHead',
        num_classes=len(_base_.classes),
        in_channels=width,
        feat_channels=width,
        stacked_convs=4,
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            octave_base_scale=8,
            scales_per_octave=1,
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[0.1, 0.1, 0.2, 0.2],
        ),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
    ),
    train_cfg=dict(assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.6),
        max_per_img=100,
    ),
)
del data_preprocessor, backbone
