"""UperNet, iViT-Small, ADE20K 160k; the rest as in upernet_ivit.py. mIoU: not run."""

_base_ = 'upernet_ivit.py'

model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='timm://caformer_s36.sail_in22k_ft_in1k'),
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
