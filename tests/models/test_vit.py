"""The four attentions in timm's vision transformers: against timm's own, and a naive loop."""

import copy
import io
import math
import pickle
import threading

import numpy as np
import pytest
import timm
import timm.optim
import torch
import torch.nn.functional as F

from mmivit.analysis.attention_maps import effective_map, head_outputs, kind_of
from mmivit.errors import LaunchError
from mmivit.models.vit import ATTENTIONS, NAMES, TokenGrid, ViTIMHSA, connect

LINEAR = ('decomposed', 'imhsa')
SMALL = dict(depth=2, embed_dim=48, num_heads=3, num_classes=5)
# Of timm's: a class token; none; registers and no place of theirs; two class tokens; norms.
MODELS = {
    'class token': ('vit_tiny_patch16_224', dict(img_size=64)),
    'none in front': (
        'vit_tiny_patch16_224',
        dict(img_size=64, class_token=False, global_pool='avg', qkv_bias=False, proj_bias=False),
    ),
    'DINOv2, registers, 56 x 98': ('vit_small_patch14_reg4_dinov2', dict(img_size=(56, 98))),
    'DeiT III': ('deit3_small_patch16_224', dict(img_size=64)),
    'DeiT, distilled': ('deit_small_distilled_patch16_224', dict(img_size=64)),
    'norms of q, k, output': (
        'vit_tiny_patch16_224',
        dict(img_size=64, qk_norm=True, scale_attn_norm=True, reg_tokens=2),
    ),
}


def make(name, kind=None, seed=0, **options):
    """A model in evaluation mode, with timm's own attention or one of ours."""
    torch.manual_seed(seed)
    if kind is None:
        return timm.create_model(name, **SMALL | options).eval()
    model = timm.create_model(name, attn_layer=ATTENTIONS[kind], **SMALL | options)
    return connect(model).eval()


def shaken(model):
    """Its weights, such that queries make a difference and nothing is at its start."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        scale = 0.3 if 'qkv' in name else 0 if name == 'pos_embed' else 0.1
        state[name] = tensor + scale * noise
    return state


def image_of(model, batch=2, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *model.patch_embed.img_size, generator=generator)


@pytest.mark.parametrize('case', MODELS)
def test_mhsa_is_timms_own(case):
    name, options = MODELS[case]
    own, model = make(name, **options), make(name, 'mhsa', **options)
    state = shaken(own)
    own.load_state_dict(state)
    model.load_state_dict(state)
    image = image_of(own)
    with torch.no_grad():
        torch.testing.assert_close(model(image), own(image), rtol=0, atol=1e-5)
        features = own.forward_features(image)
        torch.testing.assert_close(model.forward_features(image), features, rtol=0, atol=1e-5)


@pytest.mark.parametrize('kind', LINEAR)
@pytest.mark.parametrize('case', MODELS)
def test_every_patch_a_landmark_is_timms_own(kind, case):
    """Which reads its own; nothing is approximated then, tokens in front included."""
    name, options = MODELS[case]
    own, model = make(name, **options), make(name, kind, **options)
    state = shaken(own)
    own.load_state_dict(state)
    model.load_state_dict(state)
    connect(model, landmarks=7)  # at least the grid's sides
    for block in model.blocks:
        block.attn.locality.data.fill_(1e3)
    with torch.no_grad():
        features = own.forward_features(image_of(own))
        found = model.forward_features(image_of(own))
    torch.testing.assert_close(found, features, rtol=0, atol=2e-5)


def attention(kind, prefix, size, landmarks=2, dim=24, heads=3, **options):
    """One attention in fp64, far from its start, with its grid told."""
    torch.manual_seed(0)
    module = ATTENTIONS[kind](dim, heads, qkv_bias=True, norm_layer=torch.nn.LayerNorm, **options)
    module = module.double().eval()
    for name, parameter in module.named_parameters():
        parameter.data.normal_(std=1.0 if 'interaction' in name else 0.4)
    if kind in LINEAR:
        module.landmarks = landmarks
    module.token_grid = TokenGrid(
        make('vit_tiny_patch16_224', img_size=tuple(16 * n for n in size), depth=0)
    )
    module.token_grid.prefix = prefix
    return module


def naive(module, x, size):
    """The formula of vit.py, head by head and row by row, from the parameters alone."""
    params = dict(module.named_parameters())
    prefix, heads = module.token_grid.prefix, module.num_heads
    dim, (height, width) = x.shape[2], size
    d, g = dim // heads, [min(module.landmarks, n) for n in size]

    def normed(tensor, name):
        if f'{name}.weight' not in params:
            return tensor
        return F.layer_norm(tensor, (d,), params[f'{name}.weight'], params[f'{name}.bias'])

    def mixed(maps, name):
        weight = params.get(name, torch.eye(heads, dtype=x.dtype))
        return [sum(weight[i, j] * maps[j] for j in range(heads)) for i in range(heads)]

    def softmax(row):
        return row.exp() / row.exp().sum()

    out = []
    for tokens in x:
        parts = (tokens @ params['qkv.weight'].T + params['qkv.bias']).chunk(3, 1)
        pooled = [
            F.adaptive_avg_pool2d(p[prefix:].reshape(height, width, dim).permute(2, 0, 1), g)
            .flatten(1)
            .T
            for p in parts
        ]
        near, far, a_k, of_prefix = [], [], [], []
        for i in range(heads):
            own = slice(i * d, (i + 1) * d)
            q, k, v = (p[:, own] for p in parts)
            q, k = normed(q, 'q_norm'), normed(k, 'k_norm')
            q_l, k_l = normed(pooled[0][:, own], 'q_norm'), normed(pooled[1][:, own], 'k_norm')
            rows = torch.cat([q[:prefix], q_l])
            mass = torch.stack([(k[prefix:] @ r / math.sqrt(d)).exp().sum().log() for r in rows])
            a_k.append(torch.stack([softmax(k[prefix:] @ r / math.sqrt(d)) for r in rows]))
            a_q = torch.zeros(len(tokens), len(rows), dtype=x.dtype)
            for n in range(len(tokens)):
                if n < prefix:
                    a_q[n, n] = 1
                    continue
                y, z = divmod(n - prefix, width)
                y, z = (y + 0.5) * g[0] / height - 0.5, (z + 0.5) * g[1] / width - 0.5
                logits = [
                    params['content'][i] * (q[n] @ k_l[a * g[1] + b]) / math.sqrt(d)
                    - params['locality'][i] * ((y - a) ** 2 + (z - b) ** 2)
                    for a in range(g[0])
                    for b in range(g[1])
                ]
                a_q[n, prefix:] = softmax(torch.stack(logits))
            w = torch.stack(
                [
                    softmax(torch.cat([k[:prefix] @ q[n] / math.sqrt(d), (a_q[n] @ mass)[None]]))
                    for n in range(len(tokens))
                ]
            )
            near.append(w[:, :prefix])
            far.append(w[:, prefix:] * a_q)
            of_prefix.append(v)
        near, far = mixed(near, 'interaction_q'), mixed(far, 'interaction_q')
        a_k = mixed(a_k, 'interaction_k')
        y = [
            near[i] @ of_prefix[i][:prefix] + far[i] @ a_k[i] @ of_prefix[i][prefix:]
            for i in range(heads)
        ]
        out.append(torch.cat(y, 1) @ params['proj.weight'].T + params['proj.bias'])
    return torch.stack(out)


@pytest.mark.parametrize('qk_norm', [False, True])
@pytest.mark.parametrize(('prefix', 'size'), [(0, (4, 6)), (1, (5, 3)), (5, (1, 4))])
@pytest.mark.parametrize('kind', LINEAR)
def test_equals_naive_loop(kind, prefix, size, qk_norm):
    module = attention(kind, prefix, size, qk_norm=qk_norm)
    x = torch.randn(2, prefix + size[0] * size[1], 24, dtype=torch.float64)
    expected = naive(module, x, size)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-10)
    with torch.no_grad():  # other ways through memory.py
        torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-10)
        half = module.bfloat16()(x.bfloat16()).double()
    assert (half - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize('kind', LINEAR)
def test_without_tokens_in_front_it_is_the_papers(kind):
    """The attention of iViT, to which docs and tests of that apply."""
    from mmivit.models import build_attention

    module = attention(kind, 0, (4, 6), proj_bias=False)
    module.qkv.bias.data.zero_()
    plain = build_attention(kind, 24, 3, landmarks=2).double()
    state = module.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    x = torch.randn(2, 4, 6, 24, dtype=torch.float64)
    torch.testing.assert_close(module(x.flatten(1, 2)).view_as(x), plain(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize('kind', ATTENTIONS)
def test_gradients(kind):
    module = attention(kind, 2, (2, 3)).train()
    x = torch.randn(1, 8, 24, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters(recurse=False)]

    def function(x, *own):
        return torch.func.functional_call(module, dict(zip(names, own)), (x,))

    own = [parameter.detach().requires_grad_() for parameter in module.parameters(recurse=False)]
    assert torch.autograd.gradcheck(function, (x, *own), fast_mode=True)
    module(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize('case', MODELS)
def test_the_start_of_timms_weights_is_closer_than_the_papers(case):
    name, options = MODELS[case]
    own, model = make(name, **options), make(name, 'imhsa', **options)
    state = shaken(own)
    own.load_state_dict(state)
    for block in model.blocks:
        assert (block.attn.content == 1).all()
        assert (block.attn.locality == 0).all()
    model.load_state_dict(state)
    connect(model, landmarks=2)
    # Neighbours alike, as in photographs.
    image = F.interpolate(image_of(own)[:, :, ::28, ::28], own.patch_embed.img_size, mode='bicubic')
    errors = []
    with torch.no_grad():
        expected = own.forward_features(image)
        for content, locality in ((0, 2), (1, 0)):
            for block in model.blocks:
                if not errors:
                    assert (block.attn.content == 0).all()
                    assert (block.attn.locality == 2).all()
                block.attn.content.data.fill_(content)
                block.attn.locality.data.fill_(locality)
            errors.append((model.forward_features(image) - expected).norm() / expected.norm())
    assert errors[0] < 0.9 * errors[1]


def test_other_kinds_of_state():
    """A trained one is loaded as it is, another kind's is taken for what it is."""
    model = make('vit_tiny_patch16_224', 'imhsa', img_size=64)
    trained = shaken(model)
    model.load_state_dict(trained)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, trained[name])
    model.load_state_dict({'head.weight': trained['head.weight']}, strict=False)
    torch.testing.assert_close(model.blocks[0].attn.content, trained['blocks.0.attn.content'])
    without = {name: t for name, t in trained.items() if 'interaction' not in name}
    model.load_state_dict(without)  # of 'decomposed'
    torch.testing.assert_close(model.blocks[0].attn.content, trained['blocks.0.attn.content'])
    torch.testing.assert_close(model.blocks[0].attn.interaction_k, torch.eye(3))
    with pytest.raises(RuntimeError, match='Unexpected key'):
        make('vit_tiny_patch16_224', 'mhsa', img_size=64).load_state_dict(trained)


@pytest.mark.parametrize('kind', ATTENTIONS)
def test_dynamic_sizes(kind):
    options = dict(img_size=64, dynamic_img_size=True, reg_tokens=1)
    model = make('vit_tiny_patch16_224', kind, **options)
    model.load_state_dict(shaken(model))
    # Of that size from the beginning, with the positions that timm makes of the others.
    for size in ((64, 64), (32, 96), (96, 32)):
        fixed = make('vit_tiny_patch16_224', kind, **options | dict(dynamic_img_size=False))
        fixed.load_state_dict(model.state_dict())
        fixed.set_input_size(size)
        image = image_of(fixed)
        with torch.no_grad():
            torch.testing.assert_close(model(image), fixed(image), rtol=0, atol=1e-5)


def test_checkpointing_and_threads_of_other_sizes():
    model = make('vit_tiny_patch16_224', 'imhsa', img_size=64, dynamic_img_size=True).train()
    images = [torch.randn(1, 3, *size) for size in ((32, 96), (64, 64))]

    def gradients():
        model.zero_grad()
        for image in images:
            model(image).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    model.set_grad_checkpointing()
    for one, other in zip(plain, gradients()):
        torch.testing.assert_close(one, other)
    outputs = [model(image) for image in images]
    with pytest.raises(LaunchError, match='call backward before images of another size'):
        outputs[0].sum().backward()
    # Another thread, between the embedding and the blocks of this one.
    model.eval()
    with torch.no_grad():
        expected = [model(image) for image in images]

        def meanwhile(*_):
            hook.remove()
            thread = threading.Thread(target=lambda: found.append(model(images[1])))
            thread.start()
            thread.join()

        found = []
        hook = model.blocks[0].register_forward_pre_hook(meanwhile)
        torch.testing.assert_close(model(images[0]), expected[0])
        torch.testing.assert_close(found[0], expected[1])


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_a_grid_of_their_own(copied):
    model = make('vit_tiny_patch16_224', 'imhsa', img_size=64, dynamic_img_size=True)
    other = copied(model)
    images = [torch.randn(1, 3, *size) for size in ((32, 96), (96, 32))]
    with torch.no_grad():
        expected = model(images[0])
        other(images[1])
        torch.testing.assert_close(other(images[0]), expected)
    assert other.blocks[0].attn.token_grid.embed is other.patch_embed
    assert 'blocks.0.attn.interaction_q' in other.no_weight_decay()


@pytest.mark.parametrize('name', NAMES)
def test_registered_models_take_timms_weights(name, tmp_path):
    own = timm.create_model(name, **SMALL)
    file = tmp_path / 'weights.pth'
    torch.save(own.state_dict(), file)
    model = timm.create_model(
        f'{name}_imhsa',
        pretrained=True,
        pretrained_cfg_overlay=dict(file=str(file), num_classes=5),
        landmarks=4,
        **SMALL,
    )
    state = model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in own.state_dict().items())
    added = {key.rpartition('.')[2] for key in state.keys() - own.state_dict().keys()}
    assert added == {'content', 'locality', 'interaction_q', 'interaction_k'}
    for block in model.blocks:
        assert block.attn.landmarks == 4
        assert (block.attn.content == 0).all()
        assert (block.attn.locality == 2).all()
    assert model.pretrained_cfg['architecture'] == f'{name}_imhsa'


def test_optimisers_do_not_decay_what_is_added():
    model = timm.create_model('vit_tiny_patch16_224_imhsa', **SMALL)
    optimizer = timm.optim.create_optimizer_v2(
        model, 'adamw', lr=1e-3, weight_decay=0.05, filter_bias_and_bn=False, layer_decay=0.9
    )
    decay = {id(p): g['weight_decay'] for g in optimizer.param_groups for p in g['params']}
    free = {name for name, p in model.named_parameters() if decay[id(p)] == 0}
    added = {
        f'blocks.{i}.attn.{name}'
        for i in (0, 1)
        for name in ('content', 'locality', 'interaction_q', 'interaction_k')
    }
    assert free == added | {'pos_embed', 'cls_token'}


def test_exports_with_sizes_of_its_own():
    model = make('vit_tiny_patch16_224', 'imhsa', img_size=64, dynamic_img_size=True, depth=1)
    model.load_state_dict(shaken(model))
    rows, columns = torch.export.Dim('rows', min=2, max=64), torch.export.Dim('columns', min=2)
    sizes = {2: 16 * rows, 3: 16 * columns}
    image, other = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        program = torch.export.export(model, (image,), dynamic_shapes=dict(x=sizes), strict=False)
        torch.testing.assert_close(program.module()(other), model(other), rtol=0, atol=1e-5)


def test_exports_to_onnx():
    onnxruntime = pytest.importorskip('onnxruntime')
    model = make('vit_tiny_patch16_224', 'imhsa', img_size=64, depth=1)
    model.load_state_dict(shaken(model))
    image, file = torch.randn(2, 3, 64, 64), io.BytesIO()
    options = dict(input_names=['image'], optimize=False, verbose=False)
    torch.onnx.export(model, (image,), dynamo=True, **options).save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=['CPUExecutionProvider'])
    image = torch.randn(2, 3, 64, 64)
    found = session.run(None, dict(image=image.numpy()))[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, model(image).numpy(), rtol=0, atol=1e-5)


def test_what_cannot_be_is_refused():
    attn_layer = ViTIMHSA
    model = timm.create_model('vit_tiny_patch16_224', attn_layer=attn_layer, img_size=64, **SMALL)
    image = torch.randn(1, 3, 64, 64)
    with pytest.raises(LaunchError, match=r"doesn't know the grid.*connect\(model\)"):
        model(image)
    assert connect(connect(model)) is model
    with pytest.raises(LaunchError, match='ViTIMHSA takes no mask'):
        model(image, is_causal=True)
    with pytest.raises(LaunchError, match='attn_layer=ViTIMHSA'):
        connect(timm.create_model('vit_tiny_patch16_224', **SMALL))
    dropping = timm.create_model(
        'vit_tiny_patch16_224', attn_layer=attn_layer, patch_drop_rate=0.5, **SMALL
    )
    with pytest.raises(LaunchError, match=r'patch_drop_rate=0.5: .* expected 0'):
        connect(dropping)


@pytest.mark.parametrize('kind', ATTENTIONS)
def test_maps_that_are_shown_sum_the_values(kind):
    """Of the patches; tokens in front give what is left when the patches' values are zero."""
    prefix, size = 2, (3, 4)
    module = attention(kind, prefix, size)
    x = torch.randn(1, prefix + 12, 24, dtype=torch.float64)
    with torch.no_grad():
        q, k, v, *landmarks = module.project(x)
        of_front = v.clone()
        of_front[:, :, prefix:] = 0
        expected = head_outputs(module, x) - module.attend(q, k, of_front, *landmarks)
        maps = effective_map(module, x)
        assert maps.shape == (1, 3, 12, 12)
        torch.testing.assert_close(maps @ v[:, :, prefix:], expected[:, :, prefix:])
        torch.testing.assert_close(effective_map(module, x, [5, 0]), maps[:, :, [5, 0]])
        if kind == 'mhsa':
            whole = (q @ k.mT / 8**0.5).softmax(-1)
            torch.testing.assert_close(maps, whole[:, :, prefix:, prefix:])
    assert kind_of(module) == kind


def test_in_a_segmentor_of_mmseg():
    """By mmseg's own wrapper of timm's models; one step of training."""
    pytest.importorskip('mmseg')
    from mmengine.registry import init_default_scope
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

    init_default_scope('mmseg')
    head = dict(in_channels=48, channels=8, num_classes=3, norm_cfg=dict(type='BN'))
    model = MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone=dict(
                type='TIMMBackbone',
                model_name='vit_tiny_patch16_224_imhsa',
                pretrained=False,
                dynamic_img_size=True,
                out_indices=(0, 1),
                **{key: SMALL[key] for key in ('depth', 'embed_dim', 'num_heads')},
            ),
            decode_head=dict(type='FCNHead', in_index=1, num_convs=1, concat_input=False, **head),
            train_cfg=dict(),
            test_cfg=dict(mode='whole'),
        )
    )
    images = torch.randn(2, 3, 64, 96)
    sample = SegDataSample(metainfo=dict(img_shape=(64, 96), ori_shape=(64, 96)))
    sample.gt_sem_seg = PixelData(data=torch.randint(3, (1, 64, 96)))
    loss = model(images, [sample] * 2, mode='loss')['decode.loss_ce']
    loss.backward()
    blocks = model.backbone.timm_model.model.blocks
    assert all(block.attn.interaction_k.grad.abs().max() > 0 for block in blocks)
    assert [tuple(f.shape) for f in model.backbone(images)] == [(2, 48, 4, 6)] * 2
