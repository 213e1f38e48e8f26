"""UperNet with iViT on your own data: change the block at the top, nothing else.

    python tools/train.py configs/examples/your_dataset_segmentation.py --auto-scale-lr

Label maps are PNGs named as their images; pixel value i is class i of `classes`, 255 is ignored.
"""

_base_ = '../upernet_ivit.py'

# ---- yours -------------------------------------------------------------------------------------
data_root = 'data/your_dataset/'
classes = ('background', 'road', 'building')
palette = [(0, 0, 0), (128, 64, 128), (70, 70, 70)]  # red, green, blue of each class
train = dict(img_path='images/train', seg_map_path='labels/train')
val = dict(img_path='images/val', seg_map_path='labels/val')
img_suffix = '.jpg'
reduce_zero_label = False  # True where pixel value 0 is to be ignored and 1 is the first class
max_iters = 20000
# ------------------------------------------------------------------------------------------------

num_classes = len(classes)
model = dict(
    decode_head=dict(num_classes=num_classes), auxiliary_head=dict(num_classes=num_classes)
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=dict(classes=classes, palette=palette),
    img_suffix=img_suffix,
    reduce_zero_label=reduce_zero_label,
)
train_dataloader = dict(
    dataset=dict(data_prefix=train, pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    dataset=dict(data_prefix=val, pipeline=test_pipeline, **dataset),
)
test_dataloader = val_dataloader

train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 10)
default_hooks = dict(checkpoint=dict(interval=max_iters // 10))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=500, end=max_iters),
]
