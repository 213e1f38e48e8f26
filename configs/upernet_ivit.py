"""UperNet, iViT-Tiny, ADE20K, 512 x 512, 160k iterations, warm start from CAFormer-S18.

    tools/dist_train.sh configs/upernet_ivit.py 8        8 GPUs x 2 images
    tools/train.py configs/upernet_ivit.py --auto-scale-lr        any other number
    tools/test.py configs/upernet_ivit.py CHECKPOINT --tta        flips and scales

mIoU: not run.
"""

_base_ = [
    '_base_/upernet.py',
    '_base_/ade20k.py',
    '_base_/runtime_segmentation.py',
]

model = dict(
    backbone=dict(
        type='mmivit.IViT',
        arch='tiny',
        drop_path_rate=0.2,
        # Without a network: tools/convert_weights.py elsewhere, or init_cfg=None (README, Weights).
        init_cfg=dict(
            type='mmivit.PretrainedIViT',
            checkpoint='timm://caformer_s18.sail_in22k_ft_in1k',
        ),
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    # No decay on norms, biases, scales (all one-dimensional) and on the interaction, which
    # starts at the identity and would be pulled to zero.
    paramwise_cfg=dict(
        flat_decay_mult=0.0,
        custom_keys=dict(interaction=dict(decay_mult=0.0)),
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

auto_scale_lr = dict(enable=False, base_batch_size=16)  # 8 GPUs x 2 images
