"""ViT-S/16 with iMHSA learns from timm's ViT-S/16; the rest as in ../distill_ivit.py.

Error: not run. How the result is loaded: docs/pretraining.md, Plain vision transformers.
"""

_base_ = '../distill_ivit.py'

vit = dict(type='timm.create_model', num_classes=1000, dynamic_img_size=True)
model = dict(
    # Without a network: checkpoint_path='model.safetensors' for pretrained=True.
    teacher=dict(
        _delete_=True,
        model_name='vit_small_patch16_224.augreg_in21k_ft_in1k',
        pretrained=True,
        **vit,
    ),
    student=dict(_delete_=True, model_name='vit_small_patch16_224_imhsa', landmarks=7, **vit),
    blocks=r'blocks\.\d+',
    by_block=False,  # a block learns where its patches lie from the whole pass
    # of these weights, in timm's own configuration of them
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
)
