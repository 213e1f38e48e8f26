"""RTMDet on the drawn data set.

python tools/make_shapes.py data/shapes
python tools/train.py configs/examples/heads/rtmdet.py
"""

_base_ = 'retinanet.py'

model = dict(
    type='RTMDet',
    bbox_head=dict(
        _delete_=True,
        type='RTMDetSepBNHead',
        num_classes=_base_.num_classes,
        in_channels=_base_.width,
        feat_channels=_base_.width,
        stacked_convs=2,
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='SiLU', inplace=True),
        anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=_base_.strides),
        bbox_coder=dict(type='DistancePointBBoxCoder'),
        with_objectness=False,
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
    ),
    train_cfg=dict(assigner=dict(_delete_=True, type='DynamicSoftLabelAssigner', topk=13)),
)
# Its levels share convolutions, which the optimiser is to see once.
optim_wrapper = dict(paramwise_cfg=dict(bypass_duplicate=True))
