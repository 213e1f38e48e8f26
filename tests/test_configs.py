"""Every shipped config builds, takes a training step and predicts."""

import copy

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mmivit.models import IViT
from tests.conftest import CONFIGS

DETECTION = sorted(p.name for p in CONFIGS.glob('mask_rcnn*.py'))


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


@pytest.mark.parametrize('name', DETECTION)
def test_detection_config(name):
    cfg = Config.fromfile(CONFIGS / name)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    assert isinstance(model.backbone, IViT)
    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    batch = detection_batch(model.roi_head.bbox_head.num_classes)
    model.train()
    losses = model.train_step(batch, wrapper)
    assert losses['loss'].isfinite()
    assert {'loss_rpn_cls', 'loss_cls', 'loss_bbox', 'loss_mask'} <= set(losses)
    model.eval()
    with torch.no_grad():
        (sample,) = model.test_step(batch)
    assert sample.pred_instances.masks.shape[1:] == (96, 128)


@pytest.mark.parametrize('name', DETECTION)
def test_no_decay_on_norms_and_interaction(name):
    cfg = Config.fromfile(CONFIGS / name)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decay = {
        id(p): group['weight_decay'] for group in optimizer.param_groups for p in group['params']
    }
    for name, parameter in model.named_parameters():
        undecayed = parameter.ndim == 1 or 'interaction' in name
        assert decay[id(parameter)] == (0 if undecayed else 0.05), name


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
