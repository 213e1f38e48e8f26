"""The backbone: every architecture and every argument of its contract."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmivit.analysis.benchmark import saved_bytes
from mmivit.models import IViT
from mmivit.models.ivit import ARCHITECTURES
from mmivit.models.layers import Block, DropPath, Mlp, SepConv, StarReLU

TORCH_CAT = torch.cat

ARCHS = tuple(ARCHITECTURES)
ATTENTIONS = ('mhsa', 'decomposed', 'interactive', 'imhsa')
WIDTHS = {
    'nano': [32, 64, 128, 256],
    'tiny': [64, 128, 320, 512],
    'small': [64, 128, 320, 512],
    'medium': [96, 192, 384, 576],
    'base': [128, 256, 512, 768],
}
# Side lengths after the stem and each downsampling, by hand: (31 + 4 - 7) // 4 + 1 = 8, and so on.
MAPS = {
    (32, 32): [(8, 8), (4, 4), (2, 2), (1, 1)],
    (31, 31): [(8, 8), (4, 4), (2, 2), (1, 1)],
    (112, 137): [(28, 34), (14, 17), (7, 9), (4, 5)],
}


@pytest.mark.parametrize('size', MAPS)
@pytest.mark.parametrize('arch', ARCHS)
def test_maps_of_every_architecture(arch, size):
    model = IViT(arch).eval()
    assert model.out_channels == WIDTHS[arch]
    assert model.out_strides == [4, 8, 16, 32]
    with torch.no_grad():
        maps = model(torch.randn(1, 3, *size))
    assert isinstance(maps, tuple)
    for y, width, side in zip(maps, WIDTHS[arch], MAPS[size]):
        assert y.shape == (1, width, *side)
        assert y.is_contiguous()  # mmcv's RoIAlign reads memory as NCHW whatever the strides say
        assert y.isfinite().all()


def test_pieces_do_not_change_the_result(monkeypatch):
    model, image = IViT('nano').eval(), torch.randn(2, 3, 130, 170)
    whole = model(image)  # with gradients nothing is split
    splits = []
    monkeypatch.setattr('mmivit.models.memory.PIECE', 3000)
    monkeypatch.setattr(
        'mmivit.models.memory.torch.cat',
        lambda pieces, dim=0: splits.append(len(pieces)) or TORCH_CAT(pieces, dim),
    )
    with torch.no_grad():
        pieces = model(image)
    assert max(splits) > 10
    for one, other in zip(whole, pieces):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('size', [(4, 5), (3, 70_000)])
def test_star_relu_and_its_gradients(size):
    """Of scalars too, and of more numbers than are worked on at a time."""
    torch.manual_seed(0)
    module = StarReLU().double()
    with torch.no_grad():
        module.scale.fill_(-0.7)
        module.bias.fill_(0.3)
    x = torch.randn(size, dtype=torch.float64, requires_grad=True)
    weight, inputs = torch.randn_like(x), (x, module.scale, module.bias)
    found = module(x)
    expected = module.scale * x.relu() ** 2 + module.bias
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad((y * weight).sum(), inputs) for y in (found, expected))
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize('mixer', ['convolution', 'mlp'])
def test_training_keeps_what_linear_layers_made_and_no_more(mixer):
    """Of the hidden activations only those before the StarReLU; what follows is remade."""
    x = torch.randn(2, 16, 16, 32)
    module = (SepConv(32) if mixer == 'convolution' else Mlp(32)).train()
    tokens = x.numel() * x.element_size()
    saved = saved_bytes(lambda: module(x), [x, *module.parameters()])
    # Hidden activations are 2 or 4 times the tokens; the convolution's output is kept too.
    assert saved == pytest.approx(4 * tokens, rel=0.01)


@pytest.mark.parametrize('index', [1, 2])
def test_stages_compile_whole_and_for_any_size(index):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    stage = IViT(dict(depths=(1, 1, 1, 1), widths=(8, 16, 32, 64))).eval().stages[index]
    compiled = torch.compile(stage, backend='eager', fullgraph=True, dynamic=True)
    with torch.no_grad():
        for size in ((16, 16), (17, 30), (40, 9)):
            tokens = torch.randn(2, 8 * index, *size)
            torch.testing.assert_close(stage(tokens), compiled(tokens), rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] <= 2  # not one per size


def test_the_mlp_is_two_linear_layers_with_a_star_relu():
    mlp = Mlp(8)
    with torch.no_grad():
        mlp.act.scale.fill_(-0.7)
        mlp.act.bias.fill_(0.3)
    x = torch.randn(2, 3, 4, 8)
    expected = mlp.fc2(-0.7 * mlp.fc1(x).relu() ** 2 + 0.3)
    torch.testing.assert_close(mlp(x), expected)
    torch.testing.assert_close(mlp(x), mlp.fc2(mlp.act(mlp.fc1(x))))


@pytest.mark.parametrize('out_indices', [(0, 1), (0, 1, 2, 3)])
@pytest.mark.parametrize('attention', ATTENTIONS)
def test_every_parameter_gets_a_gradient(attention, out_indices):
    model = IViT('nano', attention=attention, out_indices=out_indices)
    sum(y.square().mean() for y in model(torch.randn(2, 3, 64, 96))).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without


def test_detection_size():
    maps = IViT('nano').eval()(torch.randn(1, 3, 800, 1333))
    assert [tuple(y.shape[2:]) for y in maps] == [(200, 333), (100, 167), (50, 84), (25, 42)]


def test_heads_of_the_architecture_table():
    with torch.device('meta'):
        models = {arch: IViT(arch) for arch in ARCHS}
    heads = {
        arch: [model.stages[i].blocks[0].token_mixer.num_heads for i in (2, 3)]
        for arch, model in models.items()
    }
    assert heads == {
        'nano': [4, 8],
        'tiny': [10, 16],
        'small': [10, 16],
        'medium': [12, 18],
        'base': [16, 24],
    }


def test_batch_does_not_change_the_result():
    model = IViT('nano').eval()
    x = torch.randn(3, 3, 64, 80)
    with torch.no_grad():
        together, alone = model(x), model(x[1:2])
    for a, b in zip(together, alone):
        torch.testing.assert_close(a[1:2], b, rtol=1e-4, atol=1e-4)


def test_memory_format_does_not_change_the_result():
    model = IViT('nano').eval()
    x = torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        expected = model(x)
        for a, b in zip(expected, model(x.contiguous(memory_format=torch.channels_last))):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize('out_indices', [(0,), (3,), (1, 3), [0, 1, 2, 3]])
def test_out_indices(out_indices):
    model = IViT('nano', out_indices=out_indices).eval()
    maps = model(torch.randn(1, 3, 64, 64))
    assert [y.shape[1] for y in maps] == model.out_channels
    norms = [name for name, _ in model.named_children() if name.startswith('norm')]
    assert norms == [f'norm{i}' for i in out_indices]


@pytest.mark.parametrize('in_channels', [1, 4])
def test_in_channels(in_channels):
    assert IViT('nano', in_channels=in_channels)(torch.randn(1, in_channels, 64, 64))


@pytest.mark.parametrize(('output_stride', 'side'), [(8, 16), (16, 8), (32, 4)])
def test_output_stride(output_stride, side):
    model = IViT('nano', output_stride=output_stride).eval()
    assert model.out_strides == [min(stride, output_stride) for stride in (4, 8, 16, 32)]
    maps = model(torch.randn(1, 3, 128, 128))
    assert [128 // y.shape[2] for y in maps] == model.out_strides
    assert maps[3].shape == (1, 256, side, side)
    plain = IViT('nano').eval()
    plain.load_state_dict(model.state_dict())  # the same weights


def test_layer_depths_are_as_mmpretrain_names_them():
    model = IViT('nano')  # 2 + 2 + 4 + 2 blocks
    depths = {
        'stem.conv.weight': 0,
        'stages.0.blocks.0.norm1.weight': 1,
        'stages.1.downsample.conv.weight': 3,
        'stages.1.blocks.1.mlp.fc1.weight': 4,
        'stages.3.blocks.1.token_mixer.qkv.weight': 10,
        'norm3.weight': 11,
    }
    assert {name: model.get_layer_depth(name) for name in depths} == {
        name: (depth, 12) for name, depth in depths.items()
    }
    assert model.get_layer_depth('backbone.norm0.weight', 'backbone.') == (11, 12)


def test_arch_as_a_dict():
    model = IViT(dict(depths=(1, 1, 1, 1), widths=(16, 32, 48, 64)), head_dim=16)
    assert model.out_channels == [16, 32, 48, 64]
    assert model.stages[3].blocks[0].token_mixer.num_heads == 4


def test_landmarks_change_on_a_built_model():
    model = IViT('nano').eval()
    assert model.landmarks == 7
    x = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        before = model(x)[3]
        model.landmarks = 4
        after = model(x)[3]
        fresh = IViT('nano', landmarks=4).eval()
        fresh.load_state_dict(model.state_dict())
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, fresh(x)[3])
    with pytest.raises(ValueError, match='landmarks'):
        IViT('nano', attention='mhsa').landmarks = 4


@pytest.mark.parametrize('attention', ATTENTIONS)
def test_checkpointing_gives_the_same_outputs_and_gradients(attention):
    torch.manual_seed(0)
    model = IViT('nano', attention=attention, drop_path_rate=0.3)
    x = torch.randn(2, 3, 64, 64)
    results = []
    for with_cp in (False, True):
        model.with_cp = with_cp
        model.zero_grad()
        torch.manual_seed(1)  # the same paths dropped
        maps = model(x)
        sum(y.square().mean() for y in maps).backward()
        results.append((maps, [p.grad.clone() for p in model.parameters()]))
    for a, b in zip(*(maps for maps, _ in results)):
        torch.testing.assert_close(a, b)
    for a, b in zip(*(grads for _, grads in results)):
        torch.testing.assert_close(a, b)


def test_checkpointing_recomputes(monkeypatch):
    calls = []
    forward = Block.forward
    monkeypatch.setattr(Block, 'forward', lambda self, x: calls.append(1) or forward(self, x))
    model = IViT('nano', with_cp=True)
    model(torch.randn(1, 3, 64, 64))[3].sum().backward()
    assert len(calls) == 2 * sum(ARCHITECTURES['nano']['depths'])


def frozen_names(model):
    return {name for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 4])
def test_freezing(frozen_stages):
    model = IViT('nano', frozen_stages=frozen_stages, drop_path_rate=0.5)
    prefixes = ('stem.', *(f'stages.{i}.' for i in range(frozen_stages)))
    expected = {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    if frozen_stages < 0:
        expected = set()
    assert frozen_names(model) == expected  # at construction, before anything can wrap it
    assert model.train() is model
    assert frozen_names(model) == expected
    for name, module in model.named_modules():
        frozen = frozen_stages >= 0 and f'{name}.'.startswith(prefixes)
        assert module.training is not frozen
    assert not model.eval().stages[3].training


def test_frozen_stages_do_not_change_in_training():
    model = IViT('nano', frozen_stages=2)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.train()
    sum(y.mean() for y in model(torch.randn(1, 3, 64, 64))).backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert not changed & frozen_names(model)


def test_stochastic_depth_drops_whole_images_without_gradients(monkeypatch):
    """Reentrant checkpointing, MMEngine's, runs it so; its second pass draws the masks anew."""
    monkeypatch.setattr('mmivit.models.memory.PIECE', 512)
    block = Block(8, nn.Identity(), 0.5, res_scale=False).double()
    x = torch.randn(8, 4, 4, 8, dtype=torch.float64)
    results = []
    for run in (block, partial(checkpoint, block, use_reentrant=True)):
        torch.manual_seed(0)
        inputs = x.clone().requires_grad_()
        y = run(inputs)
        y.square().sum().backward()
        results.append((y, inputs.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_drop_path():
    torch.manual_seed(0)
    layer = DropPath(0.25)
    x = torch.ones(4000, 2, 2, 3)
    y = layer(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert all(len(sample.unique()) == 1 for sample in y[:50])
    assert layer.eval()(x) is x
    rates = [m.rate for m in IViT('nano', drop_path_rate=0.3).modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.3 * i / 9 for i in range(10)])


def test_initialisation():
    model = IViT('nano')
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            # Truncated at two standard deviations, a normal keeps 0.88 of its own.
            expected = 0.88 * module.weight[0].numel() ** -0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1), name
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.LayerNorm):
            assert module.bias is None
            assert (module.weight == 1).all()


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (dict(arch='huge'), 'nano'),
        (dict(arch=dict(depths=(1, 1, 1, 1))), 'widths'),
        (dict(arch=dict(depths=(1, 1, 1), widths=(32, 32, 32, 32))), '4 positive integers'),
        (dict(attention='linear'), 'imhsa'),
        (dict(interaction='none'), 'post'),
        (dict(landmarks=0), 'from 1 up'),
        (dict(head_dim=48), r'\[1, 2, 4, 8, 16, 32, 64, 128\]'),
        (dict(out_indices=(1, 4)), r'\(0, 1, 2, 3\)'),
        (dict(out_indices=()), r'\(0, 1, 2, 3\)'),
        (dict(frozen_stages=5), '-1 to 4'),
        (dict(drop_path_rate=1.5), '0 <= rate < 1'),
        (dict(frozen_stages=1.5), '-1 to 4'),
        (dict(in_channels=0), 'at least 1'),
        (dict(out_indices=7), r'\(0, 1, 2, 3\)'),
        (dict(attention='mhsa', interaction='none'), 'post'),
        (dict(attention='mhsa', landmarks=0), 'from 1 up'),
    ],
)
def test_wrong_arguments_name_the_allowed_values(arguments, named):
    with pytest.raises(ValueError, match=named):
        IViT(**{'arch': 'nano', **arguments})


def test_a_misspelt_option_is_an_error():
    with pytest.raises(TypeError, match='landmark_grid'):
        IViT('nano', landmark_grid=7)


def test_too_small_an_input_is_an_error():
    with pytest.raises(ValueError, match='31 x 31'):
        IViT('nano')(torch.randn(1, 3, 30, 64))


def test_importing_the_model_needs_torch_and_mmengine_alone():
    code = (
        'import sys, mmivit.models\n'
        "heavy = {'mmcv', 'mmdet', 'mmseg', 'timm', 'torchvision'} & set(sys.modules)\n"
        'sys.exit(str(heavy) if heavy else 0)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
