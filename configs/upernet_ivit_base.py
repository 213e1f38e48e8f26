"""UperNet, iViT-Base, ADE20K 160k; the rest as in upernet_ivit.py. mIoU: not run."""

_base_ = 'upernet_ivit.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.4,
        init_cfg=dict(checkpoint='timm://caformer_b36.sail_in22k_ft_in1k'),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 768]),
    auxiliary_head=dict(in_channels=512),
)
optim_wrapper = dict(
    constructor='mmivit.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9),
)
