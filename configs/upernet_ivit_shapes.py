"""UperNet, iViT-Nano, on the built-in drawn data set: `make demo-seg`.

    python tools/make_shapes.py data/shapes
    python tools/train.py configs/upernet_ivit_shapes.py

Made for two CPU cores: 128 x 128 images, a narrow head.
"""

_base_ = 'upernet_ivit.py'

data_root = 'data/shapes/'
metainfo = dict(
    classes=('background', 'circle', 'square', 'triangle', 'star', 'cross'),
    palette=[
        (120, 120, 120),
        (220, 20, 60),
        (0, 140, 255),
        (60, 180, 75),
        (255, 190, 0),
        (145, 30, 180),
    ],
)
num_classes = len(metainfo['classes'])
norm_cfg = dict(type='BN', requires_grad=True)

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(arch='nano', drop_path_rate=0.0, init_cfg=None),
    decode_head=dict(
        in_channels=[32, 64, 128, 256],
        channels=48,
        dropout_ratio=0.0,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
    ),
    auxiliary_head=dict(in_channels=128, channels=48, num_classes=num_classes, norm_cfg=norm_cfg),
)

dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=metainfo,
    reduce_zero_label=True,
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandomFlip', prob=0.5, direction='vertical'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(pipeline=test_pipeline, **dataset),
)
test_dataloader = val_dataloader

max_iters = 700
optim_wrapper = dict(optimizer=dict(lr=8e-4, weight_decay=0.05), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=100, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=100))
auto_scale_lr = dict(base_batch_size=8)
randomness = dict(seed=0)
