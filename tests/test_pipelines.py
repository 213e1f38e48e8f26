"""docs/pipelines.md: each config it shows builds, trains a step, predicts and has its optimiser.

The blocks are read out of the document, so what is tested is what a user copies. Blocks with
`_base_` are pipelines; those without are the optimiser settings.
"""

import copy
import importlib
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData

from mmivit.models import IViT
from mmivit.models.attention import undecayed
from tests.conftest import ROOT

TEXT = (ROOT / 'docs' / 'pipelines.md').read_text()
BLOCKS = re.findall(r'^```python\n(.*?)^```$', TEXT, re.DOTALL | re.MULTILINE)
PIPELINES = {re.search(r"'(mm\w+::\w+)/", block)[1]: block for block in BLOCKS if '_base_' in block}
OPTIMISERS = [block for block in BLOCKS if '_base_' not in block]
SIZE = (96, 128)  # multiples of 32, as the YOLO-like necks need
CLASSES = 80  # at least as many in every stock config


def load(block, folder):
    """The block as a config, its ``mmdet::`` or ``mmseg::`` resolved by ourselves.

    mmengine's own resolution needs pkg_resources and the upstream distributions' names: newer
    setuptools lack the one, the maintained forks the other.
    """

    def configs(match):
        package = importlib.import_module(match[1])
        return f'{package.__path__[0]}/.mim/configs/'

    path = folder / 'config.py'
    path.write_text(re.sub(r'\b(mmdet|mmseg)::', configs, block))
    return Config.fromfile(path)


def shrink(model):
    """The same model with few layers, queries and proposals, on small images; no width changes."""
    model.backbone.arch = dict(depths=(1, 1, 1, 1), widths=(64, 128, 320, 512))
    preprocessor = model.data_preprocessor
    if preprocessor.get('size'):
        preprocessor.size = SIZE
    # Padding to 1024 x 1024, and multi-scale resizing, which needs a running training loop.
    preprocessor.pop('batch_augments', None)
    if 'num_queries' in model:
        model.num_queries = 30  # DINO picks them among the tokens, which are few here
    head = model.get('panoptic_head') or model.get('decode_head') or {}
    head = {} if isinstance(head, list) else head
    pixel_decoder = head.get('pixel_decoder', {})
    for decoder, layers in (
        (model.get('encoder'), 1),
        (model.get('decoder'), 2),
        (pixel_decoder.get('encoder'), 1),
        (head.get('transformer_decoder'), 3),  # one for each level of the pixel decoder
    ):
        if decoder:
            decoder.num_layers = layers
    if 'num_grids' in model.get('mask_head', {}):  # SOLOv2
        model.mask_head.num_grids = [10, 9, 6, 4, 3]
    if 'roi_head' in model:
        stages = model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 32
        model.test_cfg.rpn.max_per_img = 50


def build(cfg):
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    assert isinstance(model.backbone, IViT)
    return model


def random_batch(scope, images):
    """Random images, each with two boxes and masks (mmdet), or with a label map (mmseg)."""
    metainfo = dict(
        img_shape=SIZE,
        ori_shape=SIZE,
        batch_input_shape=SIZE,
        pad_shape=SIZE,
        scale_factor=(1.0, 1.0),
        img_id=0,
    )
    masks = np.zeros((2, *SIZE), np.uint8)
    masks[0, 10:50, 10:60] = masks[1, 40:90, 60:120] = 1
    if scope == 'mmdet':
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks

        sample = DetDataSample(metainfo=metainfo)
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[10.0, 10, 60, 50], [60, 40, 120, 90]]),
            labels=torch.tensor([0, CLASSES - 1]),
            masks=BitmapMasks(masks, *SIZE),
        )
    else:
        from mmseg.structures import SegDataSample

        sample = SegDataSample(metainfo=metainfo)
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(masks.max(0)[None]).long())
    inputs = [torch.randint(0, 255, (3, *SIZE), dtype=torch.uint8) for _ in range(images)]
    return dict(inputs=inputs, data_samples=[copy.deepcopy(sample) for _ in range(images)])


def test_every_block_is_a_case():
    # A block that the pattern misses, or two of one name, would go untested in silence.
    assert TEXT.count('```python') == len(PIPELINES) + len(OPTIMISERS)
    assert len(PIPELINES) == TEXT.count('\n### ') - 1  # all sections but the optimiser's


@pytest.mark.parametrize('name', PIPELINES)
def test_pipeline_trains_and_predicts(name, tmp_path):
    cfg = load(PIPELINES[name], tmp_path)
    shrink(cfg.model)
    torch.manual_seed(0)
    model = build(cfg).train()
    model.init_weights()  # as the runner does; some heads leave memory uninitialised before
    assert model.backbone.out_channels == channels_in(cfg.model)

    # Two images: UperNet pools to 1 x 1, and BN cannot train on a single value per channel.
    batch = model.data_preprocessor(random_batch(cfg.default_scope, images=2), training=True)
    loss, _ = model.parse_losses(model(**batch, mode='loss'))
    assert loss.isfinite()
    loss.backward()
    # All of them: under DDP a parameter without a gradient stops the training.
    for parameter_name, parameter in model.backbone.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name

    model.eval()
    with torch.no_grad():
        (sample,) = model.test_step(random_batch(cfg.default_scope, images=1))
    if model.backbone.out_strides[-1] == 8:
        assert {y.shape[-1] for y in model.backbone(torch.randn(1, 3, *SIZE))} == {SIZE[1] // 8}
    if cfg.default_scope == 'mmseg':
        assert sample.pred_sem_seg.shape == SIZE
    else:
        boxes = sample.pred_instances.bboxes
        assert boxes.shape == (len(sample.pred_instances.scores), 4)
        if 'masks' in sample.pred_instances:
            assert sample.pred_instances.masks.shape[1:] == SIZE


def channels_in(model):
    """What the document gives the neck, or the head where there is no neck, as a list."""
    receivers = model.get('neck') or model.get('panoptic_head') or model.decode_head
    first, *others = receivers if isinstance(receivers, list) else [receivers]
    if isinstance(first.in_channels, (list, tuple)):
        return list(first.in_channels)
    if model.get('neck'):
        return [first.in_channels]
    heads = [first, *others, *([model.auxiliary_head] if 'auxiliary_head' in model else [])]
    return [head.in_channels for head in sorted(heads, key=lambda head: head.in_index)]


@pytest.mark.parametrize('name', PIPELINES)
def test_the_attentions_own_parameters_are_not_decayed(name, tmp_path):
    stock = load(PIPELINES[name], tmp_path).optim_wrapper
    sgd, adamw, adamw_with_backbone_key = OPTIMISERS
    if stock.optimizer.type == 'SGD':
        optimiser = sgd
    elif 'backbone' in stock.get('paramwise_cfg', {}).get('custom_keys', {}):
        optimiser = adamw_with_backbone_key
    else:
        optimiser = adamw
    cfg = load(PIPELINES[name] + optimiser, tmp_path)
    assert cfg.optim_wrapper.get('clip_grad') == stock.get('clip_grad')

    shrink(cfg.model)
    model = build(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    groups = {id(p): group for group in optimizer.param_groups for p in group['params']}
    own = undecayed(model.backbone)
    kinds = {name.rpartition('.')[2] for name in own}
    assert kinds == {'interaction_q', 'interaction_k', 'content', 'locality'}
    assert {groups[id(parameter)]['weight_decay'] for parameter in own.values()} == {0}
    for parameter_name, parameter in model.backbone.named_parameters():
        group = groups[id(parameter)]
        flat = parameter.ndim == 1 or parameter_name in own
        expected = 0 if flat else cfg.optim_wrapper.optimizer.weight_decay
        assert group['weight_decay'] == expected, parameter_name
        assert group['lr'] == cfg.optim_wrapper.optimizer.lr, parameter_name


def test_a_tenth_of_the_rate_for_a_pretrained_backbone():
    """The last optimiser with the two keys that the document names below it."""
    keys = dict(re.findall(r'`(backbone|interaction)=(dict\(lr_mult=.*?\))`', TEXT))
    assert len(keys) == 2
    settings = Config.fromstring(OPTIMISERS[-1], '.py').optim_wrapper
    for name, setting in keys.items():
        settings.paramwise_cfg.custom_keys[name] = Config.fromstring(f'a = {setting}', '.py').a
    settings.paramwise_cfg.custom_keys.pop('_delete_')
    settings.optimizer = dict(type='AdamW', lr=1e-3, weight_decay=0.05)
    model = torch.nn.ModuleDict(dict(backbone=IViT('nano'), head=torch.nn.Linear(2, 2)))
    groups = build_optim_wrapper(model, settings | dict(type='OptimWrapper')).optimizer.param_groups
    group_of = {id(p): group for group in groups for p in group['params']}
    for parameter in model.backbone.parameters():
        group = group_of[id(parameter)]
        assert (group['lr'], group['weight_decay']) == (1e-4, 0)
    assert group_of[id(model.head.weight)]['weight_decay'] == 0.05
