"""UperNet, iViT-Tiny, ADE20K, tested by sliding windows at an image's own resolution.

    tools/predict.py configs/upernet_ivit_slide.py CHECKPOINT large_photo.jpg

Trained as upernet_ivit.py, whose checkpoints it takes. mIoU: not run.
"""

_base_ = 'upernet_ivit.py'

model = dict(test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
