"""Mask R-CNN with iViT on your own data: change the block at the top, nothing else.

    python tools/train.py configs/examples/your_dataset_detection.py --auto-scale-lr

Annotations are in COCO's format; their category names must be those of `classes`.
"""

_base_ = '../mask_rcnn_ivit.py'

# After _base_, else MMEngine takes this for a config of its other kind.
import os.path  # noqa: E402

# ---- yours -------------------------------------------------------------------------------------
data_root = 'data/your_dataset/'
classes = ('cat', 'dog')  # one class: ('cat',), with the comma
train = dict(ann_file='annotations/train.json', data_prefix=dict(img='train/'))
val = dict(ann_file='annotations/val.json', data_prefix=dict(img='val/'))
max_epochs = 36
# ------------------------------------------------------------------------------------------------

num_classes = len(classes)
model = dict(
    roi_head=dict(
        bbox_head=dict(num_classes=num_classes),
        mask_head=dict(num_classes=num_classes),
    )
)

dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(dataset=dict(**dataset, **train))
val_dataloader = dict(dataset=dict(**dataset, **val))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=os.path.join(data_root, val['ann_file']))
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        eta_min_ratio=0.01,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
