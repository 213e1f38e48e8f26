"""UperNet with iViT on your own data: change the block at the top, nothing else.

    python tools/train.py configs/examples/your_dataset_segmentation.py

Label maps are PNGs named as their images; pixel value i is class i of `classes`, 255 is ignored.
Images of several suffixes, or a list of files: tools/new_project.py, which writes this file.
"""

_base_ = '../upernet_ivit.py'

# After _base_, else MMEngine takes this for a config of its other kind.
from mmivit.models import ivit  # noqa: E402

# ---- yours -------------------------------------------------------------------------------------
data_root = 'data/your_dataset/'
classes = ('background', 'road', 'building')
palette = [(0, 0, 0), (128, 64, 128), (70, 70, 70)]  # red, green, blue of each class
train = dict(data_prefix=dict(img_path='images/train', seg_map_path='labels/train'))
val = dict(data_prefix=dict(img_path='images/val', seg_map_path='labels/val'))
img_suffix = '.jpg'
reduce_zero_label = False  # True where pixel value 0 is to be ignored and 1 is the first class
image_size = (2048, 512)  # images are scaled to fit into it: long side, short side
crop_size = (512, 512)  # of training, out of images scaled by half to twice: height, width
flips = 'horizontal'  # ['horizontal', 'vertical'] of photographs from above
batch_size = 2  # images per step and GPU, at least 2
epochs = 100
arch = 'tiny'  # 'nano' for a CPU or a laptop
weights = 'timm://caformer_s18.sail_in22k_ft_in1k'  # or a file; None: from scratch
width = 512  # channels of the head; 64 for a CPU or a laptop
# ------------------------------------------------------------------------------------------------

num_classes = len(classes)
channels = list(ivit.ARCHITECTURES[arch]['widths'])
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        arch=arch,
        init_cfg=weights and dict(type='mmivit.PretrainedIViT', checkpoint=weights),
    ),
    decode_head=dict(in_channels=channels, channels=width, num_classes=num_classes),
    auxiliary_head=dict(in_channels=channels[2], channels=width // 2, num_classes=num_classes),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=image_size, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5, direction=flips),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, keep_ratio=True),
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
    batch_size=batch_size,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    # A last batch of a single image is left out: the head's BatchNorm could not be trained on it.
    batch_sampler=dict(drop_last=True),
    dataset=dict(pipeline=train_pipeline, **dataset, **train),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **dataset, **val))
test_dataloader = val_dataloader

# All of the schedule follows from the epochs, whatever the number of images.
interval = max(1, epochs // 10)
train_cfg = dict(
    _delete_=True, type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=interval
)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=True), checkpoint=dict(by_epoch=True, interval=interval)
)
log_processor = dict(by_epoch=True)
param_scheduler = [
    dict(type='mmivit.WarmUpLR', share=0.05, start_factor=0.01, convert_to_iter_based=True),
    dict(type='PolyLR', power=1.0, convert_to_iter_based=True),
]
# Rates are for 16 images, and AdamW's falls with the root of the batch; from scratch it is higher.
rate = 6e-5 if weights else 8e-4
optim_wrapper = dict(
    optimizer=dict(lr=rate * (batch_size / 16) ** 0.5), clip_grad=dict(max_norm=5.0)
)
auto_scale_lr = dict(base_batch_size=batch_size)
