"""Maps and diversity against loops written from the paper's equations, and against known cases."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from mmivit.analysis.attention_maps import (
    attention_inputs,
    cosine_similarity,
    effective_map,
    effective_rank,
    head_diversity,
    key_less_maps,
    landmark_maps,
    layer_diversity,
    linear_cka,
)
from mmivit.models import IViT, build_attention
from mmivit.models.attention import ATTENTIONS

KINDS = tuple(ATTENTIONS)
LINEAR = ('decomposed', 'imhsa')
DIM, HEADS = 24, 3
POSITIONS = [(kind, 'post') for kind in KINDS]
POSITIONS += [(kind, position) for kind in ('interactive', 'imhsa') for position in ('pre', 'both')]


def make(kind, interaction='post', dim=DIM):
    """A module in fp64 whose interaction is far from the identity."""
    torch.manual_seed(0)
    module = build_attention(kind, dim, HEADS, 4, interaction).double()
    for name, parameter in module.named_parameters():
        if 'interaction' in name:
            parameter.data.normal_()
        elif name in ('content', 'locality'):
            parameter.data.uniform_(0, 2)
    return module


def naive(module, x):
    """The effective maps (h, N, N), and A_K' (h, L, N) where there are landmarks, of one image."""
    params = dict(module.named_parameters())
    height, width, dim = x.shape
    heads, d = module.num_heads, dim // module.num_heads
    q, k, _ = (x.reshape(-1, dim) @ part.T for part in params['qkv.weight'].chunk(3))
    position = getattr(module, 'interaction_position', None)

    def mix(maps, name):
        return [sum(params[name][i, j] * maps[j] for j in range(heads)) for i in range(heads)]

    def attend(left, right, name):
        maps = []
        for i in range(heads):
            s = slice(i * d, (i + 1) * d)
            maps.append(left[:, s] @ right[:, s].T / math.sqrt(d))
            if left is q and 'content' in params:
                maps[i] = params['content'][i] * maps[i] - params['locality'][i] * distances()
        if position == 'both':
            maps = mix(maps, f'{name}_pre')
        if position == 'pre':
            maps = mix(maps, name)
        maps = [torch.stack([row.exp() / row.exp().sum() for row in head]) for head in maps]
        return mix(maps, name) if position in ('post', 'both') else maps

    def distances():
        sides = ((height, min(module.landmarks, height)), (width, min(module.landmarks, width)))
        y, x = (
            ((torch.arange(n).double()[:, None] + 0.5) * g / n - 0.5 - torch.arange(g)).square()
            for n, g in sides
        )
        # (H, 1, g_h, 1) + (1, W, 1, g_w) -> (N, L)
        return (y[:, None, :, None] + x[None, :, None, :]).reshape(height * width, -1)

    def pooled(tokens):
        grid = tokens.reshape(height, width, dim).permute(2, 0, 1)
        size = (min(module.landmarks, height), min(module.landmarks, width))
        return F.adaptive_avg_pool2d(grid, size).flatten(1).T

    if not hasattr(module, 'landmarks'):
        return torch.stack(attend(q, k, 'interaction')), None
    attn_q = attend(q, pooled(k), 'interaction_q')
    attn_k = attend(pooled(q), k, 'interaction_k')
    return torch.stack([a @ b for a, b in zip(attn_q, attn_k)]), torch.stack(attn_k)


@pytest.mark.parametrize(('kind', 'interaction'), POSITIONS)
def test_maps_equal_the_equations(kind, interaction):
    module = make(kind, interaction)
    x = torch.randn(2, 7, 9, DIM, dtype=torch.float64)
    maps = effective_map(module, x)
    assert maps.shape == (2, HEADS, 63, 63)
    for b in range(2):
        whole, gathered = naive(module, x[b])
        torch.testing.assert_close(maps[b], whole, rtol=0, atol=1e-12)
        if kind in LINEAR:
            torch.testing.assert_close(landmark_maps(module, x)[b], gathered, rtol=0, atol=1e-12)
    in_fp32 = effective_map(module.float(), x.float())
    torch.testing.assert_close(in_fp32.double(), maps, rtol=0, atol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_maps_equal_the_output_on_one_hot_values(kind):
    """A layer of its own for this: heads as wide as there are tokens, whose values are one-hot."""
    tokens = 12
    module = make(kind, dim=HEADS * tokens)
    x = torch.randn(1, 3, 4, HEADS * tokens, dtype=torch.float64)
    one_hot = torch.eye(tokens, dtype=torch.float64).repeat(1, HEADS)  # (N, h d)
    to_values = torch.linalg.lstsq(x[0].flatten(0, 1), one_hot).solution  # x W = one-hot
    module.qkv.weight.data[2 * HEADS * tokens :] = to_values.T
    module.proj.weight.data.copy_(torch.eye(HEADS * tokens))
    output = module(x).reshape(tokens, HEADS, tokens).transpose(0, 1)  # (H W, h d) -> (h, N, d)
    torch.testing.assert_close(effective_map(module, x)[0], output, rtol=0, atol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_some_rows_equal_those_of_the_whole_map(kind):
    module, x = make(kind), torch.randn(2, 5, 6, DIM, dtype=torch.float64)
    whole = effective_map(module, x)
    rows = effective_map(module, x, [29, 0, 7])
    torch.testing.assert_close(rows, whole[:, :, [29, 0, 7]], rtol=0, atol=1e-12)


@pytest.mark.parametrize(('kind', 'interaction'), [p for p in POSITIONS if p[0] in LINEAR])
@pytest.mark.parametrize('part', ['content', 'locality', 'both'])
def test_what_tokens_read_by_content_and_by_locality(kind, interaction, part):
    """Against the whole map of an attention without interaction, the other number of which is 0."""
    module, x = make(kind, interaction), torch.randn(2, 7, 9, DIM, dtype=torch.float64)
    alone = build_attention('decomposed', DIM, HEADS, 4).double()
    alone.load_state_dict(module.state_dict(), strict=False)
    for name in {'content', 'locality'} - {part} if part != 'both' else ():
        getattr(alone, name).data.zero_()
    rows = key_less_maps(module, x, [3, 60])[part]
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, HEADS, 2).double())
    expected = effective_map(alone, x, [3, 60])
    torch.testing.assert_close(rows @ landmark_maps(alone, x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('kind', KINDS)
def test_rows_sum_to_one_without_interaction(kind):
    module, x = build_attention(kind, DIM, HEADS), torch.randn(1, 8, 9, DIM)
    torch.testing.assert_close(effective_map(module, x).sum(-1), torch.ones(1, HEADS, 72))
    if kind in LINEAR:
        torch.testing.assert_close(landmark_maps(module, x).sum(-1), torch.ones(1, HEADS, 49))


@pytest.mark.parametrize('kind', KINDS)
def test_the_model_is_left_as_it_was(kind):
    model = IViT('nano', attention=kind, drop_path_rate=0.5, frozen_stages=1).train()
    model.stages[3].eval()
    modes = [module.training for module in model.modules()]
    images = torch.randn(2, 3, 112, 137)
    expected = model.eval()(images)
    for module, mode in zip(model.modules(), modes):
        module.training = mode
    found = attention_inputs(model, images)
    assert list(found) == [f'stages.2.blocks.{i}.token_mixer' for i in range(4)] + [
        f'stages.3.blocks.{i}.token_mixer' for i in range(2)
    ]
    for name, (module, x) in found.items():
        assert module is model.get_submodule(name)
        assert x.shape == ((2, 7, 9, 128) if '.2.' in name else (2, 4, 5, 256))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(model.eval()(images), expected))


def test_no_hook_stays_when_the_model_fails():
    model = IViT('nano')
    with pytest.raises(ValueError, match='at least'):
        attention_inputs(model, torch.zeros(1, 3, 8, 8))
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.training


def test_a_model_without_attention_is_an_error():
    with pytest.raises(ValueError, match='Conv2d runs no attention'):
        attention_inputs(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match='no images'):
        head_diversity(IViT('nano'), [])


def test_similarities_of_known_cases():
    features = torch.randn(5, 8, dtype=torch.float64)
    rotated = features @ torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    heads = torch.stack([features, -3 * features, rotated])
    assert cosine_similarity(heads)[0, :2].tolist() == pytest.approx([1, -1])
    torch.testing.assert_close(linear_cka(heads + 7), torch.ones(3, 3, dtype=torch.float64))
    apart = torch.zeros(2, 4, 2)
    apart[0, :, 0] = torch.tensor([1.0, -1, 1, -1])
    apart[1, :, 1] = torch.tensor([1.0, 1, -1, -1])
    assert cosine_similarity(apart)[0, 1] == 0
    assert linear_cka(apart)[0, 1] == 0
    assert linear_cka(torch.ones(2, 4, 3)).tolist() == [[0, 0], [0, 0]]


def test_cka_equals_its_form_over_kernels():
    x, y = torch.randn(2, 20, 6, dtype=torch.float64)
    centre = torch.eye(20, dtype=torch.float64) - 1 / 20
    k, m = (centre @ features @ features.T @ centre for features in (x, y))
    expected = (k * m).sum() / (k.norm() * m.norm())
    torch.testing.assert_close(linear_cka(torch.stack([x, y]))[0, 1], expected)


def test_effective_rank_of_known_cases():
    vector = torch.rand(9, 1)
    maps = torch.stack([torch.eye(9), vector @ vector.T, torch.diag((torch.arange(9) < 4) * 2.0)])
    assert effective_rank(maps).tolist() == pytest.approx([9, 1, 4], abs=1e-4)


@pytest.mark.parametrize('kind', KINDS)
def test_diversity_of_a_model(kind):
    torch.manual_seed(0)
    model = IViT('nano', attention=kind)
    images = [torch.randn(3, 64, 96), torch.randn(3, 80, 64)]
    records = head_diversity(model, images)
    assert [r.heads for r in records] == [4] * 4 + [8] * 2
    assert {r.attention for r in records} == {kind}
    for record in records:
        assert 0 < record.map_cosine <= 1
        assert -1 <= record.output_cosine <= 1
        assert 0 <= record.output_cka <= 1
        assert 1 <= record.effective_rank <= 24
    first = head_diversity(model, images[:1])[0]
    second = head_diversity(model, images[1:])[0]
    assert records[0].output_cka == pytest.approx((first.output_cka + second.output_cka) / 2)
    attention = model.stages[2].blocks[0].token_mixer
    head = attention.qkv.weight.data.unflatten(0, (3, 4, 32))  # (3 C, C) -> (3, h, d, C)
    head.copy_(head[:, :1].clone().expand_as(head))
    same = head_diversity(model, images)[0]
    assert (same.map_cosine, same.output_cosine, same.output_cka) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize('kind', LINEAR)
def test_content_and_locality_count_in_a_classifier_too(kind):
    backbone = IViT('nano', attention=kind)
    classifier = timm.create_model('ivit_nano', attention=kind, num_classes=3)
    images = [torch.randn(3, 96, 160)]
    ranks = []
    for content, locality in ((0, 0), (1, 0), (0, 2)):
        for name, parameter in backbone.named_parameters():
            if name.endswith('.qkv.weight'):
                nn.init.trunc_normal_(parameter, std=0.02, generator=torch.manual_seed(0))
            if name.endswith(('.content', '.locality')):
                parameter.data.fill_(locality if name.endswith('.locality') else content)
        classifier.load_state_dict(backbone.state_dict(), strict=False)
        records = head_diversity(backbone, images)
        assert head_diversity(classifier, images) == records
        ranks.append([record.effective_rank for record in records])
        # Alike weights make maps alike, but for the places: all tokens read one pooling then.
        assert {record.collapsed for record in records} == {float(locality == 0)}
    assert ranks[0] == pytest.approx([1] * 6, abs=1e-3)
    assert all(a != b for a, b in zip(*ranks[1:]))


def test_some_rows_tell_maps_that_have_collapsed():
    module, x = make('imhsa'), torch.randn(1, 7, 9, DIM, dtype=torch.float64)
    module.content.data.zero_()
    module.locality.data.copy_(torch.tensor([0.0, 0, 3]))
    module.interaction_q.data.copy_(torch.eye(HEADS))
    whole, some = (layer_diversity('name', module, x, rows) for rows in (None, [1, 20, 60]))
    assert whole.collapsed == some.collapsed == pytest.approx(2 / 3)
    assert some.effective_rank <= 3


def test_one_head_has_no_pairs():
    model = IViT(dict(depths=(1, 1, 1, 1), widths=(8, 8, 16, 16)), head_dim=16)
    record = head_diversity(model, [torch.randn(3, 64, 64)])[0]
    assert math.isnan(record.map_cosine)
    assert record.effective_rank >= 1
