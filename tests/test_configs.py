"""Every shipped config builds, takes a training step and predicts."""

import copy
import re

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from mmivit.apis.config import check_channels
from mmivit.models import IViT
from tests.conftest import CONFIGS

EXAMPLES = ('boxes', 'atss', 'detection')
DETECTION = [*sorted(p.name for p in CONFIGS.glob('mask_rcnn*.py'))]
DETECTION += [f'examples/your_dataset_{name}.py' for name in EXAMPLES]
DETECTION += [f'examples/heads/{p.name}' for p in (CONFIGS / 'examples/heads').glob('*.py')]
SEGMENTATION = [*sorted(p.name for p in CONFIGS.glob('upernet*.py'))]
SEGMENTATION.append('examples/your_dataset_segmentation.py')


def detection_batch(classes, size=(96, 128)):
    masks = np.zeros((2, *size), np.uint8)
    masks[0, 10:50, 10:60] = masks[1, 40:90, 60:120] = 1
    from mmdet.structures.mask import BitmapMasks

    sample = DetDataSample(
        metainfo=dict(
            img_shape=size,
            ori_shape=size,
            batch_input_shape=size,
            scale_factor=(1.0, 1.0),
            img_id=0,
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 10, 60, 50], [60, 40, 120, 90]]),
        labels=torch.tensor([0, classes - 1]),
        masks=BitmapMasks(masks, *size),
    )
    return dict(
        inputs=[torch.randint(0, 255, (3, *size), dtype=torch.uint8)], data_samples=[sample]
    )


def check_decay(model, optimizer):
    """No decay on norms, interaction, content and locality."""
    decay = {
        id(p): group['weight_decay'] for group in optimizer.param_groups for p in group['params']
    }
    for name, parameter in model.named_parameters():
        undecayed = parameter.ndim == 1 or 'interaction' in name
        assert decay[id(parameter)] == (0 if undecayed else 0.05), name
    landmarks = [n for n, p in model.named_parameters() if n.endswith(('.content', '.locality'))]
    assert landmarks
    assert not any(decay[id(model.get_parameter(name))] for name in landmarks)


@pytest.mark.parametrize('name', DETECTION)
def test_detection_config(name):
    cfg = Config.fromfile(CONFIGS / name)
    init_default_scope(cfg.default_scope)
    if name.endswith('_3x.py'):  # most only train longer what the 1x config trains
        once = Config.fromfile(CONFIGS / name.replace('_3x', ''))
        once.model.backbone.drop_path_rate = cfg.model.backbone.drop_path_rate
        assert cfg.model == once.model
        if cfg.optim_wrapper == once.optim_wrapper:
            return
    model = MODELS.build(cfg.model)
    assert isinstance(model.backbone, IViT)
    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    check_decay(model, wrapper.optimizer)
    head = model.roi_head.bbox_head if hasattr(model, 'roi_head') else model.bbox_head
    batch = detection_batch(head.num_classes)
    with_masks = model.with_mask or hasattr(head, 'loss_mask')  # as RTMDet-Ins has
    if not with_masks:
        del batch['data_samples'][0].gt_instances.masks
    model.train()
    losses = model.train_step(batch, wrapper)
    assert losses['loss'].isfinite()
    own = {'loss_rpn_cls'} if hasattr(model, 'roi_head') else set()
    own |= {'loss_centerness'} if name.endswith(('atss.py', 'fcos.py')) else set()
    masks = {'loss_mask'} if with_masks else set()
    assert {'loss_cls', 'loss_bbox', *own, *masks} <= set(losses)
    model.eval()
    with torch.no_grad():
        (sample,) = model.test_step(batch)
    assert sample.pred_instances.bboxes.shape[1:] == (4,)
    if with_masks:
        assert sample.pred_instances.masks.shape[1:] == (96, 128)


def segmentation_batch(classes, size=(128, 96), count=2):
    sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size))
    sample.gt_sem_seg = PixelData(data=torch.randint(0, classes, (1, *size)))
    image = torch.randint(0, 255, (3, *size), dtype=torch.uint8)
    return dict(inputs=[image] * count, data_samples=[sample] * count)


@pytest.mark.parametrize('name', SEGMENTATION)
def test_segmentation_config(name):
    cfg = Config.fromfile(CONFIGS / name)
    init_default_scope(cfg.default_scope)
    cfg.model.data_preprocessor.size = (128, 96)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    assert isinstance(model.backbone, IViT)
    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    classes = model.decode_head.num_classes
    model.train()
    losses = model.train_step(segmentation_batch(classes), wrapper)
    assert losses['loss'].isfinite()
    assert {'decode.loss_ce', 'aux.loss_ce'} <= set(losses)
    model.eval()
    with torch.no_grad():
        (sample,) = model.test_step(segmentation_batch(classes, count=1))
    assert sample.pred_sem_seg.data.shape == (1, 128, 96)


def example(name, folder, **changes):
    """An example's config with other values of variables in the block at its top."""
    for path in (CONFIGS / 'examples').glob('your_dataset_*.py'):
        text = path.read_text().replace("_base_ = '../", f"_base_ = '{CONFIGS}/")
        for variable, value in changes.items():
            text = re.sub(f'(?m)^{variable} = .*?(  #.*)?$', f'{variable} = {value!r}', text)
        (folder / path.name).write_text(text)
    return Config.fromfile(folder / f'your_dataset_{name}.py')


@pytest.mark.parametrize('name', [*EXAMPLES, 'segmentation'])
def test_a_dataset_of_your_own_is_described_in_one_place(name, tmp_path):
    """What the block at the top says reaches every head, data set, evaluator and schedule."""
    cfg = example(
        name, tmp_path, classes=('a', 'b', 'c', 'd'), arch='nano', weights=None, width=64,
        image_size=(320, 256), batch_size=4, epochs=30, data_root='data/mine',
    )  # fmt: skip

    def values(node, key):
        if isinstance(node, dict):
            for name, value in node.items():
                yield from [value] if name == key else values(value, key)
        elif isinstance(node, (list, tuple)):
            for item in node:
                yield from values(item, key)

    assert set(values(cfg.model, 'num_classes')) == {4}
    assert {*values(cfg.model, 'out_channels'), *values(cfg.model, 'feat_channels')} <= {64}
    check_channels(cfg)
    assert cfg.model.backbone.init_cfg is None
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert len(loader.dataset.metainfo.classes) == 4
        assert loader.dataset.data_root == 'data/mine'
        assert set(values(loader.dataset.pipeline, 'scale')) == {(320, 256)}
    if name != 'segmentation':  # joined, though the folder ends without a slash
        assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file
        assert cfg.val_evaluator.ann_file == 'data/mine/annotations/val.json'
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 4
    assert (cfg.train_cfg.max_epochs, 30 % cfg.train_cfg.val_interval) == (30, 0)
    assert cfg.default_hooks.checkpoint.interval == cfg.train_cfg.val_interval
    # Whatever else has a length follows from the epochs once their iterations are known.
    assert not {*values(cfg.param_scheduler, 'end'), *values(cfg.param_scheduler, 'T_max')}
    assert all(scheduler.convert_to_iter_based for scheduler in cfg.param_scheduler)


def test_no_path_is_put_together_by_adding():
    """The evaluator's file was 'data/mineannotations/val.json'."""
    for path in CONFIGS.rglob('*.py'):
        assert 'data_root +' not in path.read_text()


@pytest.mark.parametrize('arch', ['nano', 'tiny'])
def test_bf16_training_of_the_backbone_stays_finite(arch):
    """On a CPU the backbone alone: mmcv's operators know no bf16 there."""
    torch.manual_seed(0)
    model = IViT(arch, drop_path_rate=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(3):
        with torch.autocast('cpu', torch.bfloat16):
            maps = model(torch.randn(2, 3, 96, 128))
            loss = sum(y.float().square().mean() for y in maps)
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize('name', ['mask_rcnn_ivit_shapes.py', 'upernet_ivit_shapes.py'])
def test_mixed_precision_stays_finite_on_a_gpu(name, dtype):
    cfg = Config.fromfile(CONFIGS / name)
    init_default_scope(cfg.default_scope)
    detects = cfg.default_scope == 'mmdet'
    if not detects:
        cfg.model.data_preprocessor.size = (128, 96)
    model = MODELS.build(cfg.model).cuda()
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype=dtype)
    cfg.optim_wrapper.optimizer.pop('fused', None)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    model.train()
    for _ in range(5):
        batch = detection_batch(5) if detects else segmentation_batch(6)
        assert model.train_step(batch, wrapper)['loss'].isfinite()


def test_the_schedule_of_the_1x_config():
    cfg = Config.fromfile(CONFIGS / 'mask_rcnn_ivit.py')
    assert cfg.model.backbone.arch == 'tiny'
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    assert cfg.optim_wrapper.optimizer.lr == 1e-4
    assert cfg.train_cfg.max_epochs == 12
    assert cfg.param_scheduler[0].end == 1000
    assert cfg.param_scheduler[1].milestones == [8, 11]
    assert cfg.auto_scale_lr.base_batch_size == 16


def test_mask_rcnn_is_faster_rcnn_with_masks():
    with_masks, boxes = (Config.fromfile(CONFIGS / f'{n}_rcnn_ivit.py') for n in ('mask', 'faster'))
    for part in ('mask_roi_extractor', 'mask_head'):
        assert with_masks.model.roi_head.pop(part)
    with_masks.model.type = boxes.model.type
    del with_masks.model.data_preprocessor['pad_mask']
    del (
        with_masks.model.train_cfg.rcnn['mask_size'],
        with_masks.model.test_cfg.rcnn['mask_thr_binary'],
    )
    assert with_masks.model == boxes.model
    assert boxes.val_evaluator.metric == boxes.test_evaluator.metric == 'bbox'
    for cfg, masks in ((with_masks, True), (boxes, False)):
        for split in ('train', 'val', 'test'):
            steps = cfg[f'{split}_dataloader'].dataset.pipeline
            assert any(step.get('with_mask') for step in steps) == masks


def test_the_3x_configs_differ_in_schedule_and_scale():
    for path in CONFIGS.glob('mask_rcnn*3x.py'):
        cfg = Config.fromfile(path)
        assert cfg.train_cfg.max_epochs == 36
        assert cfg.param_scheduler[1].milestones == [27, 33]
        assert cfg.train_dataloader.dataset.pipeline[2].type == 'RandomResize'


@pytest.mark.parametrize('path', sorted(CONFIGS.rglob('*.py')), ids=lambda p: p.name)
def test_docstrings_claim_no_score(path):
    text = path.read_text()
    assert text.startswith('"""')
    if 'AP' in text.split('"""')[1]:
        assert 'not run' in text
