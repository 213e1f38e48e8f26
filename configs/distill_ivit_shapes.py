"""iViT-Nano learns from an iViT-Nano with MHSA on the built-in drawn data set, for two CPU cores.

    python tools/make_shapes.py data/shapes
    python tools/train.py configs/upernet_ivit_shapes.py --work-dir work_dirs/teacher \
        --cfg-options model.backbone.attention=mhsa
    python tools/train.py configs/distill_ivit_shapes.py

The teacher is the backbone of a segmentor: it doesn't classify, and its features alone are learnt.
"""

_base_ = 'distill_ivit.py'

model = dict(
    teacher='work_dirs/teacher/iter_700.pth',
    student=dict(arch='nano'),
)

pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='torchvision/ToImage'),
    dict(type='torchvision/RandomHorizontalFlip'),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    dataset=dict(
        data_root='data/shapes', data_prefix=dict(img_path='images/training'), pipeline=pipeline
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    dataset=dict(
        data_root='data/shapes',
        data_prefix=dict(img_path='images/validation'),
        pipeline=pipeline[:2],
    ),
)
test_dataloader = val_dataloader

max_iters = 300
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=30, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=100)
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=100))
auto_scale_lr = dict(base_batch_size=16)
randomness = dict(seed=0)
