"""Layer-wise learning-rate decay for a detector and a segmentor."""

import re

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope
from torch import nn

from mmivit.engine.layer_decay import layer_scales
from mmivit.models import IViT
from tests.conftest import CONFIGS

RATE = 0.8


def test_depth_of_every_parameter():
    model = IViT('nano')  # depths 2, 2, 4, 2
    depth = {name: model.get_layer_depth(name)[0] for name, _ in model.named_parameters()}
    assert {model.get_layer_depth(name)[1] for name in depth} == {12}  # 10 blocks
    assert depth['stem.conv.weight'] == 0
    assert depth['stages.0.blocks.0.norm1.weight'] == 1
    assert depth['stages.0.blocks.1.mlp.fc1.weight'] == 2
    assert depth['stages.1.downsample.conv.weight'] == 3
    assert depth['stages.2.blocks.3.token_mixer.interaction_q'] == 8
    assert depth['stages.3.blocks.1.res_scale1'] == 10
    assert depth['norm0.weight'] == 11
    assert set(depth.values()) == set(range(12))


@pytest.mark.parametrize('name', ['mask_rcnn_ivit_shapes.py', 'upernet_ivit_shapes.py'])
@pytest.mark.parametrize('frozen_stages', [-1, 2])
def test_groups_cover_every_parameter_once(name, frozen_stages):
    cfg = Config.fromfile(CONFIGS / name)
    cfg.merge_from_dict(
        {
            'model.backbone.frozen_stages': frozen_stages,
            'optim_wrapper.constructor': 'mmivit.LayerDecayOptimWrapperConstructor',
            'optim_wrapper.paramwise_cfg.layer_decay_rate': RATE,
        }
    )
    init_default_scope(cfg.default_scope)
    model = ROOT_MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    groups = optimizer.param_groups
    listed = [id(p) for group in groups for p in group['params']]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in model.parameters() if p.requires_grad}

    group_of = {id(p): group for group in groups for p in group['params']}
    base = cfg.optim_wrapper.optimizer.lr
    rates = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        group = group_of[id(parameter)]
        undecayed = parameter.ndim == 1 or 'interaction' in name
        assert group['weight_decay'] == (
            0 if undecayed else cfg.optim_wrapper.optimizer.weight_decay
        )
        if name.startswith('backbone.'):
            depth, _ = model.backbone.get_layer_depth(name, 'backbone.')
            rates.setdefault(depth, set()).add(group['lr'])
        else:
            assert group['lr'] == base
    assert all(len(values) == 1 for values in rates.values())
    ordered = [rates[depth].pop() for depth in sorted(rates)]
    assert ordered == sorted(set(ordered))  # strictly rising from the stem
    assert ordered[-1] == base
    assert ordered[-2] == pytest.approx(base * RATE)


@pytest.mark.parametrize('attention', ['imhsa', 'decomposed'])
def test_what_attentions_have_beside_projections_is_not_decayed(attention):
    """Whatever else the settings say, which without ``custom_keys`` decay all but norms."""
    model = IViT('nano', attention=attention)
    wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        constructor='mmivit.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=RATE, norm_decay_mult=0.0),
    )
    groups = build_optim_wrapper(model, wrapper).optimizer.param_groups
    decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    own = re.compile(r'.*\.token_mixer\.(interaction_[qk]|content|locality)$')
    found = [name for name, _ in model.named_parameters() if own.match(name)]
    assert len(found) == 6 * (4 if attention == 'imhsa' else 2)
    for name, parameter in model.named_parameters():
        expected = 0 if name in found or 'norm' in name else 0.05
        assert decay[id(parameter)] == expected, name


def test_any_model_with_the_backbone_will_do():
    class Anything(nn.Module):
        def __init__(self):
            super().__init__()
            self.deep = nn.Module()
            self.deep.trunk = IViT('nano')
            self.head = nn.Linear(2, 2)

    model = Anything()
    scales = layer_scales(model, 0.5)
    assert scales[model.head.weight] == 1
    assert scales[model.deep.trunk.stem.conv.weight] == 0.5**11


@pytest.mark.parametrize('rate', [None, 0, 1.5])
def test_a_wrong_rate_is_named(rate):
    wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=1e-4),
        constructor='mmivit.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=rate),
    )
    with pytest.raises(ValueError, match='layer_decay_rate'):
        build_optim_wrapper(IViT('nano'), wrapper)


def test_a_model_without_depths_is_refused():
    with pytest.raises(ValueError, match='layer_depth'):
        layer_scales(torch.nn.Linear(2, 2), 0.9)
