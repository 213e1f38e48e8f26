"""Faster R-CNN with FPN, as mmdet has it; the backbone comes from the config that inherits this."""

_loss = dict(type='CrossEntropyLoss', loss_weight=1.0)
_box_loss = dict(type='L1Loss', loss_weight=1.0)
_nms = dict(type='nms', iou_threshold=0.7)


def _assigner(positive, negative):
    return dict(
        type='MaxIoUAssigner',
        pos_iou_thr=positive,
        neg_iou_thr=negative,
        min_pos_iou=negative,
        match_low_quality=True,
        ignore_iof_thr=-1,
    )


def _box_coder(stds):
    return dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=stds)


model = dict(
    type='FasterRCNN',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    neck=dict(type='FPN', out_channels=256, num_outs=5),
    rpn_head=dict(
        type='RPNHead',
        in_channels=256,
        feat_channels=256,
        anchor_generator=dict(
            type='AnchorGenerator',
            scales=[8],
            ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32, 64],
        ),
        bbox_coder=_box_coder([1.0, 1.0, 1.0, 1.0]),
        loss_cls=dict(use_sigmoid=True, **_loss),
        loss_bbox=_box_loss,
    ),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        bbox_head=dict(
            type='Shared2FCBBoxHead',
            in_channels=256,
            fc_out_channels=1024,
            roi_feat_size=7,
            num_classes=80,
            bbox_coder=_box_coder([0.1, 0.1, 0.2, 0.2]),
            loss_cls=dict(use_sigmoid=False, **_loss),
            loss_bbox=_box_loss,
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=_assigner(0.7, 0.3),
            sampler=dict(
                type='RandomSampler', num=256, pos_fraction=0.5, add_gt_as_proposals=False
            ),
            allowed_border=-1,
            pos_weight=-1,
        ),
        rpn_proposal=dict(nms_pre=2000, max_per_img=1000, nms=_nms, min_bbox_size=0),
        rcnn=dict(
            assigner=_assigner(0.5, 0.5),
            sampler=dict(type='RandomSampler', num=512, pos_fraction=0.25),
            pos_weight=-1,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=1000, max_per_img=1000, nms=_nms, min_bbox_size=0),
        rcnn=dict(
            score_thr=0.05,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=100,
        ),
    ),
)

# Only for this file: a config's top-level names travel with every dump of it.
del _loss, _box_loss, _nms, _assigner, _box_coder
