"""iViT-Tiny learns from CAFormer-S18 on folders of images, without labels (docs/pretraining.md).

    tools/dist_train.sh configs/distill_ivit.py 8        8 GPUs x 64 images
    tools/train.py configs/distill_ivit.py --amp --auto-scale-lr      any other number
    tools/convert_weights.py work_dirs/distill_ivit/iter_20000.pth ivit_tiny.pth

Any images will do, at any depth of data/images; held-out ones are in data/images_val. Where their
folders are the teacher's classes, in the order of their names as ImageNet's are, labelled=True says
how many the student gets right. Error and accuracy: not run.
"""

_base_ = '_base_/runtime_distillation.py'

model = dict(
    type='mmivit.DistilledIViT',
    # Without a network: the file of that name from the hub, model.safetensors.
    teacher='timm://caformer_s18.sail_in22k_ft_in1k',
    student=dict(type='mmivit.IViTClassifier', arch='tiny', landmarks=7),
    data_preprocessor=dict(
        type='ImgDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='torchvision/ToImage'),
    dict(type='torchvision/RandomResizedCrop', size=224, scale=(0.25, 1.0), antialias=True),
    dict(type='torchvision/RandomHorizontalFlip'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='torchvision/ToImage'),
    dict(type='torchvision/Resize', size=256, antialias=True),
    dict(type='torchvision/CenterCrop', size=224),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    batch_sampler=dict(type='mmivit.SeededBatchSampler'),
    dataset=dict(
        type='mmivit.ImageFolder',
        data_root='data/images',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmivit.ImageFolder',
        data_root='data/images_val',
        labelled=False,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmivit.DistillationMetric')
test_evaluator = val_evaluator

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=5.0),
    # As in upernet_ivit.py.
    paramwise_cfg=dict(
        flat_decay_mult=0.0,
        custom_keys=dict(interaction=dict(decay_mult=0.0)),
    ),
)
max_iters = 20000
warm_up = 500
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warm_up),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=warm_up, end=max_iters),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=2000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

auto_scale_lr = dict(enable=False, base_batch_size=512)  # 8 GPUs x 64 images
