"""iViT-Medium learns from CAFormer-M36; the rest as in distill_ivit.py. Error: not run."""

_base_ = 'distill_ivit.py'

model = dict(
    teacher='timm://caformer_m36.sail_in22k_ft_in1k',
    student=dict(arch='medium'),
)
