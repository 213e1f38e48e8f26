"""Counted costs against formulas written from the equations."""

import pytest
import torch
from mmengine.config import Config

from mmivit.analysis.cost import (
    architecture_costs,
    architectures_table,
    build_timm,
    config_cost,
    configs_table,
    count_cost,
    timm_table,
)
from mmivit.errors import LaunchError
from mmivit.models.ivit import ARCHITECTURES
from tests.conftest import CONFIGS

LANDMARKS = 7


def formula(arch, size, attention):
    """MACs by hand: convolutions, linear layers, and section 2 of the method for attention."""
    depths, widths = ARCHITECTURES[arch]['depths'], ARCHITECTURES[arch]['widths']
    height, width = ((side + 4 - 7) // 4 + 1 for side in size)
    total = height * width * 3 * 49 * widths[0]  # stem
    for stage, (depth, dim) in enumerate(zip(depths, widths)):
        if stage:
            height, width = (height + 1) // 2, (width + 1) // 2
            total += height * width * 9 * widths[stage - 1] * dim
        tokens = height * width
        mlp = 2 * tokens * dim * 4 * dim
        if stage < 2:
            mixer = 2 * tokens * dim * 2 * dim + 49 * tokens * 2 * dim
        else:
            heads, d = dim // 32, 32
            mixer = 4 * tokens * dim * dim  # qkv and proj
            if attention in ('mhsa', 'interactive'):
                mixer += 2 * heads * tokens * tokens * d
            else:
                g_h, g_w = min(LANDMARKS, height), min(LANDMARKS, width)
                marks = g_h * g_w
                if tokens > 16 * LANDMARKS**2:  # else the projections are averaged, which is free
                    mixer += marks * dim * 3 * dim  # qkv of the landmarks
                mixer += 4 * heads * tokens * marks * d  # two maps, and their two products
                if attention == 'decomposed':  # positions widen one call's heads by eight
                    mixer += 2 * heads * tokens * marks * 8
            if attention == 'interactive':
                mixer += heads * heads * tokens * tokens
            if attention == 'imhsa':
                mixer += 2 * heads * heads * tokens * marks
                mixer += 3 * tokens * marks  # how close they lie
        total += depth * (mixer + mlp)
    return total


@pytest.mark.parametrize('attention', ['mhsa', 'decomposed', 'interactive', 'imhsa'])
@pytest.mark.parametrize('size', [(224, 224), (112, 137), (800, 1333)])
def test_macs_equal_the_formula(size, attention):
    for arch, cost in architecture_costs(size, attention=attention).items():
        assert cost.macs == formula(arch, size, attention)


@pytest.mark.parametrize('name', ['mask_rcnn_ivit_shapes.py', 'upernet_ivit_shapes.py'])
def test_a_config_costs_its_backbone_and_its_heads(name):
    cfg, size = Config.fromfile(CONFIGS / name), (128, 160)
    attentions = ('imhsa', 'mhsa')
    whole = [config_cost(cfg, size, attention=attention) for attention in attentions]
    backbone = [architecture_costs(size, attention=attention)['nano'] for attention in attentions]
    # The heads cost the same whichever attention the backbone has.
    assert whole[0].macs - whole[1].macs == backbone[0].macs - backbone[1].macs
    assert whole[0].macs > backbone[0].macs


def test_a_config_of_another_scope_is_refused():
    with pytest.raises(LaunchError, match='mmdet or mmseg'):
        config_cost(Config(dict(default_scope='mmpretrain')))


def test_tables_have_a_row_for_each_model_and_size():
    table = architectures_table([(64, 64), (64, 96)], attention='mhsa').splitlines()
    assert table[:2] == [
        '| arch | parameters | MACs at 64 x 64 | MACs at 64 x 96 |',
        '|---|---:|---:|---:|',
    ]
    assert [row.split(' | ')[0][2:] for row in table[2:]] == list(ARCHITECTURES)
    config = str(CONFIGS / 'upernet_ivit_shapes.py')
    cost = config_cost(Config.fromfile(config), (64, 64))
    assert configs_table([config], [(64, 64)]).splitlines()[1:] == [
        '|---|---|---:|---:|',
        f'| {config} | 64 x 64 | {cost.parameters / 1e6:.1f} M | {cost.macs / 1e9:.1f} G |',
    ]
    with pytest.raises(LaunchError, match=r'no file none\.py'):
        configs_table(['none.py'])


def test_a_vision_transformer_costs_what_its_formula_says():
    """Of mmivit/models/vit.py, section by section; 6,240 patches and a class token."""
    dim, heads, d, front, marks = 192, 3, 64, 1, 49
    size, patches = (960, 1664), 60 * 104
    rows, tokens = front + marks, front + patches
    block = 12 * tokens * dim * dim + marks * dim * 3 * dim  # layers, projected landmarks
    block += 2 * heads * rows * patches * d + 2 * heads * marks * patches * d  # A_K, A_Q
    block += 3 * patches * marks  # how close they lie
    block += heads * (marks * patches + front * front)  # A_Q m
    block += 2 * heads * front * tokens * d + heads * front * front * d  # w, itself
    mixed = rows * patches + (front + marks) * patches + 2 * front * front
    block += heads * heads * mixed
    model, image = build_timm('vit_tiny_patch16_224_imhsa', size, 'meta'), torch.empty(1, 3, *size)
    cost = count_cost(model, lambda: model(image.to('meta')))
    assert cost.macs == patches * dim * 3 * 256 + 12 * block
    with pytest.raises(LaunchError, match="no model 'vit_none'"):
        timm_table(['vit_none'], [size])
