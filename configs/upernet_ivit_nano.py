"""UperNet, iViT-Nano, ADE20K 160k; the rest as in upernet_ivit.py. mIoU: not run."""

_base_ = 'upernet_ivit.py'

model = dict(
    backbone=dict(arch='nano', drop_path_rate=0.0, init_cfg=None),
    decode_head=dict(in_channels=[32, 64, 128, 256]),
    auxiliary_head=dict(in_channels=128),
)
