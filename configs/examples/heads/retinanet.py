"""RetinaNet on the drawn data set; the other dense heads differ from it by theirs.

python tools/make_shapes.py data/shapes
python tools/train.py configs/examples/heads/retinanet.py
"""

_base_ = 'faster_rcnn.py'

model = dict(
    _delete_=True,
    type='RetinaNet',
    data_preprocessor=_base_.model.data_preprocessor,
    backbone=_base_.model.backbone,
    neck=_base_.model.neck,
    bbox_head=dict(
        type='RetinaHead',
        num_classes=_base_.num_classes,
        in_channels=_base_.width,
        feat_channels=_base_.width,
        stacked_convs=2,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=1,
            ratios=[0.5, 1.0, 2.0],
            strides=_base_.strides,
        ),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0),
    ),
    train_cfg=dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.4,
            min_pos_iou=0,
            ignore_iof_thr=-1,
        ),
        sampler=dict(type='PseudoSampler'),  # focal loss takes all of them
        allowed_border=-1,
        pos_weight=-1,
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=100,
    ),
)
