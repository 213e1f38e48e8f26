"""Faster R-CNN on the drawn data set: mask_rcnn.py without masks.

python tools/make_shapes.py data/shapes
python tools/train.py configs/examples/heads/faster_rcnn.py
"""

_base_ = 'mask_rcnn.py'

model = dict(
    type='FasterRCNN',
    data_preprocessor=dict(pad_mask=False),
    roi_head=dict(mask_roi_extractor=None, mask_head=None),
)

train_pipeline = _base_.train_pipeline
train_pipeline[1] = dict(type='LoadAnnotations', with_bbox=True)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
