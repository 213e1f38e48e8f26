"""ATSS on the drawn data set.

python tools/make_shapes.py data/shapes
python tools/train.py configs/examples/heads/atss.py
"""

_base_ = 'retinanet.py'

model = dict(
    type='ATSS',
    bbox_head=dict(
        type='ATSSHead',
        norm_cfg=dict(type='GN', num_groups=8),
        anchor_generator=dict(octave_base_scale=8, ratios=[1.0]),
        loss_bbox=dict(_delete_=True, type='GIoULoss', loss_weight=2.0),
        loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
    ),
    train_cfg=dict(assigner=dict(_delete_=True, type='ATSSAssigner', topk=9)),
)
