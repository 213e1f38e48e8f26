"""FCOS on the drawn data set.

python tools/make_shapes.py data/shapes
python tools/train.py configs/examples/heads/fcos.py
"""

_base_ = 'retinanet.py'

model = dict(
    type='FCOS',
    bbox_head=dict(
        _delete_=True,
        type='FCOSHead',
        num_classes=_base_.num_classes,
        in_channels=_base_.width,
        feat_channels=_base_.width,
        stacked_convs=2,
        strides=_base_.strides,
        regress_ranges=((-1, 32), (32, 64), (64, 1e8)),
        center_sampling=True,
        norm_on_bbox=True,
        norm_cfg=dict(type='GN', num_groups=8),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
    ),
    train_cfg=None,  # a point belongs to the box that it lies in
)
