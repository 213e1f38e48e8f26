"""RTMDet-Ins on the drawn data set: RTMDet with masks.

python tools/make_shapes.py data/shapes
python tools/train.py configs/examples/heads/rtmdet_ins.py
"""

_base_ = 'rtmdet.py'

model = dict(
    data_preprocessor=dict(pad_mask=True),
    bbox_head=dict(
        type='RTMDetInsSepBNHead',
        loss_mask=dict(type='DiceLoss', loss_weight=2.0, eps=5e-6, reduction='mean'),
    ),
    test_cfg=dict(mask_thr_binary=0.5),
)

train_pipeline = _base_.train_pipeline
train_pipeline[1] = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator
