"""Faster R-CNN with iViT on boxes of your own: change the block at the top, nothing else.

    python tools/train.py configs/examples/your_dataset_boxes.py

Annotations are in COCO's format; their category names must be those of `classes`. Other formats:
tools/new_project.py, which writes this file for your data. With masks: your_dataset_detection.py.
"""

_base_ = '../faster_rcnn_ivit.py'

# After _base_, else MMEngine takes this for a config of its other kind.
import os.path  # noqa: E402

from mmivit.models import ivit  # noqa: E402

# ---- yours -------------------------------------------------------------------------------------
data_root = 'data/your_dataset/'
classes = ('cat', 'dog')  # one class: ('cat',), with the comma
train = dict(ann_file='annotations/train.json', data_prefix=dict(img='train/'))
val = dict(ann_file='annotations/val.json', data_prefix=dict(img='val/'))
image_size = (1333, 800)  # images are scaled to fit into it: long side, short side
flips = 'horizontal'  # ['horizontal', 'vertical'] of photographs from above
batch_size = 2  # images per step and GPU
epochs = 36
arch = 'tiny'  # 'nano' for a CPU or a laptop
weights = 'timm://caformer_s18.sail_in22k_ft_in1k'  # or a file; None: from scratch
width = 256  # channels of the neck and the heads; 64 for a CPU or a laptop
regions = 512  # of an image that a step learns from; 64 for a CPU or a laptop
# ------------------------------------------------------------------------------------------------

model = dict(
    backbone=dict(
        arch=arch,
        init_cfg=weights and dict(type='mmivit.PretrainedIViT', checkpoint=weights),
    ),
    neck=dict(in_channels=list(ivit.ARCHITECTURES[arch]['widths']), out_channels=width),
    rpn_head=dict(in_channels=width, feat_channels=width),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width),
        bbox_head=dict(in_channels=width, fc_out_channels=4 * width, num_classes=len(classes)),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=min(2000, 8 * regions), max_per_img=min(1000, 4 * regions)),
        rcnn=dict(sampler=dict(num=regions)),
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=image_size, ratio_range=(0.75, 1.33), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5, direction=flips),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=batch_size,
    # Images without an object are trained on too: there, whatever is found is wrong.
    dataset=dict(
        filter_cfg=dict(filter_empty_gt=False), pipeline=train_pipeline, **dataset, **train
    ),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **dataset, **val))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=os.path.join(data_root, val['ann_file']))
test_evaluator = val_evaluator

# All of the schedule follows from the epochs, whatever the number of images.
interval = max(1, epochs // 12)
train_cfg = dict(max_epochs=epochs, val_interval=interval)
default_hooks = dict(checkpoint=dict(interval=interval))
param_scheduler = [
    dict(type='mmivit.WarmUpLR', share=0.05, start_factor=0.01, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, convert_to_iter_based=True),
]
# Rates are for 16 images, and AdamW's falls with the root of the batch; from scratch it is higher.
rate = 1e-4 if weights else 8e-4
optim_wrapper = dict(
    optimizer=dict(lr=rate * (batch_size / 16) ** 0.5), clip_grad=dict(max_norm=5.0)
)
auto_scale_lr = dict(base_batch_size=batch_size)
