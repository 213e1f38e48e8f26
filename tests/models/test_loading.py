"""What of a state dict must fit: numbers, not names, and heads of the same width."""

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)

from mmivit.errors import CheckpointError
from mmivit.models import IViT
from mmivit.models.layers import Block
from mmivit.models.loading import check_fits
from tests.models.test_torch_module import Lora, replace_linear


def test_less_than_half_of_the_numbers_is_an_error_with_both_sizes(tmp_path):
    """Tensors of one number are alike in all sizes: 28 of a nano's by names, 0 % of its numbers."""
    torch.save(IViT('tiny').state_dict(), tmp_path / 'tiny.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'tiny.pth'))
    with pytest.raises(CheckpointError, match=r'hold 28 of its [\d,]+ .* tiny, it is of size nano'):
        IViT('nano', init_cfg=init_cfg).init_weights()


def test_a_part_of_a_checkpoint_is_an_error():
    state = IViT('nano', out_indices=(0, 1)).state_dict()
    with pytest.raises(CheckpointError, match='Is this a part of a checkpoint'):
        load_state_dict(IViT('nano'), state)


def test_of_weights_without_stages_no_size_is_told():
    state = {'stem.conv.weight': IViT('nano').stem.conv.weight}
    with pytest.raises(CheckpointError, match='Is this a part of a checkpoint'):
        load_state_dict(IViT('nano'), state)


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, check_fits])
@pytest.mark.parametrize('absent', [(), ('content', 'locality')])
def test_torchs_wrappers_around_blocks_leave_names_alone(load, absent):
    """FSDP's do the same, and only processes that are connected can make them."""
    model = IViT('nano')
    state = {n: t for n, t in model.state_dict().items() if not n.endswith(absent)}
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, Block))
    load(model, state)


def test_an_adapter_alone_is_loaded(log):
    model = IViT('nano')
    model.requires_grad_(False)
    replace_linear(model, Lora)
    adapter = {n: torch.ones_like(p) for n, p in model.named_parameters() if 'lora_' in n}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in adapter)
    load_state_dict(model, adapter)
    assert all(parameter.min() == 1 for parameter in model.parameters() if parameter.requires_grad)
    assert any('numbers' in message for message in log if message.startswith('IViT:'))


@pytest.mark.parametrize('refuse', [load_state_dict, check_fits])
@pytest.mark.parametrize('attention', ['imhsa', 'decomposed', 'interactive'])
def test_heads_of_another_width_are_refused(refuse, attention):
    weights = nn.Sequential(IViT('nano', attention=attention, head_dim=16)).state_dict()
    with pytest.raises(CheckpointError, match=r'is of 8 heads, this model has 4 there.*head_dim'):
        refuse(nn.Sequential(IViT('nano', attention=attention)), weights)


@pytest.mark.parametrize(
    ('trained', 'asked'),
    [
        (dict(interaction='both'), dict(interaction='post')),
        (dict(attention='imhsa'), dict(attention='decomposed')),
        (dict(attention='decomposed'), dict(attention='mhsa')),
    ],
)
def test_attention_that_leaves_some_weights_out_is_refused(trained, asked):
    with pytest.raises(CheckpointError, match=r'has no .*; set attention and interaction'):
        check_fits(IViT('nano', **asked), IViT('nano', **trained).state_dict())
