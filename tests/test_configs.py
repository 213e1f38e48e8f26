"""Every shipped config builds, takes a training step and predicts."""

import copy

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

from mmivit.models import IViT
from tests.conftest import CONFIGS

DETECTION = [*sorted(p.name for p in CONFIGS.glob('mask_rcnn*.py'))]
DETECTION.append('examples/your_dataset_detection.py')
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
    batch = detection_batch(model.roi_head.bbox_head.num_classes)
    model.train()
    losses = model.train_step(batch, wrapper)
    assert losses['loss'].isfinite()
    assert {'loss_rpn_cls', 'loss_cls', 'loss_bbox', 'loss_mask'} <= set(losses)
    model.eval()
    with torch.no_grad():
        (sample,) = model.test_step(batch)
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


def test_a_dataset_of_your_own_is_named_in_one_place(tmp_path):
    """Other classes at the top reach every head, data set and evaluator."""
    for name, others in (
        ('detection', "('a', 'b', 'c')"),
        ('segmentation', "('a', 'b', 'c', 'd')"),
    ):
        text = (CONFIGS / f'examples/your_dataset_{name}.py').read_text()
        text = text.replace("_base_ = '../", f"_base_ = '{CONFIGS}/")
        (before,) = (line for line in text.splitlines() if line.startswith('classes = '))
        path = tmp_path / f'{name}.py'
        path.write_text(text.replace(before, f'classes = {others}'))
        cfg = Config.fromfile(path)
        count = others.count("',") + others.count("')")

        def counts(node):
            if isinstance(node, dict):
                for key, value in node.items():
                    yield from [value] if key == 'num_classes' else counts(value)
            elif isinstance(node, (list, tuple)):
                for item in node:
                    yield from counts(item)

        found = list(counts(cfg.model))
        assert len(found) == 2
        assert set(found) == {count}
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            assert len(loader.dataset.metainfo.classes) == count
            assert loader.dataset.data_root == 'data/your_dataset/'


def test_a_data_root_may_end_without_a_slash(tmp_path):
    """Paths are joined: the evaluator's file was 'data/mineannotations/val.json'."""
    text = (CONFIGS / 'examples/your_dataset_detection.py').read_text()
    text = text.replace("_base_ = '../", f"_base_ = '{CONFIGS}/")
    text = text.replace("data_root = 'data/your_dataset/'", "data_root = 'data/mine'")
    (tmp_path / 'mine.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'mine.py')
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file
    assert cfg.val_evaluator.ann_file == 'data/mine/annotations/val.json'
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
