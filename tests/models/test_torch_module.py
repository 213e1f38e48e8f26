"""The backbone is a torch module like any other: what attaches to modules works, and transforms."""

import copy
import pickle
import sys
import traceback
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, prune

from mmivit.models import IViT, build_attention
from mmivit.models.attention import ATTENTIONS
from mmivit.models.layers import Mlp, SepConv

ARCH = dict(depths=(1, 1, 1, 1), widths=(8, 16, 32, 64))
MODES = ('train', 'eval')


def model_of(attention='imhsa', mode='eval', **options):
    """A small backbone with every parameter away from its initial value."""
    torch.manual_seed(0)
    model = IViT(ARCH, attention=attention, landmarks=2, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return getattr(model, mode)()


def image_of(batch=2, size=(64, 48)):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1)).double()


def loss_of(maps):
    return sum(y.square().mean() for y in maps)


def leaves(model):
    return {n: m for n, m in model.named_modules() if not list(m.children()) and n}


@pytest.mark.parametrize('gradients', [True, False], ids=['gradients', 'no_grad'])
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('attention', ATTENTIONS)
def test_hooks_fire_on_every_leaf_and_see_whole_tensors(attention, mode, gradients, monkeypatch):
    monkeypatch.setattr('mmivit.models.memory.PIECE', 64)  # all is in pieces where nobody looks
    model = model_of(attention, mode)
    with torch.set_grad_enabled(gradients):
        maps = model(image_of())
    forward, backward, batches = Counter(), Counter(), set()

    def count(counter, name):
        def hook(module, inputs, output):
            counter[name] += 1
            batches.add(len(inputs[0]))

        return hook

    for name, leaf in leaves(model).items():
        leaf.register_forward_hook(count(forward, name))
        if gradients:
            leaf.register_full_backward_hook(lambda *_, name=name: backward.update([name]) and None)
    with torch.set_grad_enabled(gradients):
        hooked = model(image_of().requires_grad_(gradients))
    for one, other in zip(maps, hooked):
        torch.testing.assert_close(one, other)
    assert set(forward) == set(leaves(model))
    assert batches == {2}  # no part of a batch
    if gradients:
        loss_of(hooked).backward()
        assert set(backward) == set(leaves(model))


@pytest.mark.parametrize('attention', ATTENTIONS)
def test_tensors_that_hooks_see_have_the_shape_of_the_whole(attention, monkeypatch):
    monkeypatch.setattr('mmivit.models.memory.PIECE', 64)
    model, seen = model_of(attention), []
    model.stages[2].blocks[0].mlp.fc1.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].shape)
    )
    with torch.no_grad():
        model(image_of())
    assert seen == [(2, 4, 3, 32)]  # stride 16


class Lora(nn.Module):
    """A low-rank adapter around a linear layer, with the attributes that peft's has."""

    def __init__(self, base):
        super().__init__()
        self.base_layer, self.scaling = base, 2.0
        self.in_features, self.out_features = base.in_features, base.out_features
        self.lora_A = nn.Linear(base.in_features, 2, bias=False, dtype=base.weight.dtype)
        self.lora_B = nn.Linear(2, base.out_features, bias=False, dtype=base.weight.dtype)

    def forward(self, x):
        return self.base_layer(x) + self.scaling * self.lora_B(self.lora_A(x))

    def merged(self):
        merged = copy.deepcopy(self.base_layer)
        merged.weight.data += self.scaling * self.lora_B.weight @ self.lora_A.weight
        return merged


def replace_linear(model, make):
    """Replace every linear layer, or adapter, by what ``make`` makes of it."""
    for name, module in list(model.named_modules()):
        if type(module) in (nn.Linear, Lora) and 'base_layer' not in name and 'lora_' not in name:
            parent, _, own = name.rpartition('.')
            setattr(model.get_submodule(parent), own, make(module))


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('attention', ATTENTIONS)
def test_lora_gets_gradients_and_merged_equals_unmerged(attention, mode):
    model, plain = model_of(attention, mode), model_of(attention, mode)(image_of())
    replace_linear(model, Lora)
    getattr(model, mode)()
    loss_of(model(image_of())).backward()
    lora = {n: p for n, p in model.named_parameters() if 'lora_' in n}
    assert len(lora) == 2 * 4 * 4  # two of each of four linear layers in four blocks
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in lora.values())
    with torch.no_grad():
        unmerged = model(image_of())
        replace_linear(model, Lora.merged)
        merged = model(image_of())
    for a, b, c in zip(unmerged, merged, plain):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        assert not torch.allclose(a, c, atol=1e-5)


def test_dropout_within_an_adapter_is_drawn_once():
    """What is run again in the backward pass draws the numbers of the forward pass."""

    class Dropped(nn.Linear):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.5))

    torch.manual_seed(0)
    mlp = Mlp(8).double()
    mlp.fc2 = Dropped(32, 8, bias=False).double()
    x = torch.randn(4, 4, 4, 8, dtype=torch.float64)
    weight, results = mlp.fc2.weight, []
    for training in (True, False):  # run again, and not
        mlp.train(training).zero_grad()
        torch.manual_seed(1)
        y = mlp(x)
        torch.manual_seed(2)  # other numbers are drawn until the backward pass
        y.square().sum().backward()
        results.append((y, weight.grad.clone()))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other)


def test_prune():
    model = model_of()
    pruned = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            prune.l1_unstructured(module, 'weight', amount=0.5)
            twin = pruned.get_submodule(name)
            twin.weight.data.mul_(module.weight_mask)
    for a, b in zip(model(image_of()), pruned(image_of())):
        torch.testing.assert_close(a, b)


def test_weight_norm_changes_nothing_until_it_is_trained():
    model = model_of()
    expected = model(image_of())
    for module in list(model.modules()):
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            parametrizations.weight_norm(module)
    for a, b in zip(expected, model(image_of())):
        torch.testing.assert_close(a, b)
    loss_of(model.train()(image_of())).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize('attention', ATTENTIONS)
def test_dynamic_int8_quantisation(attention):
    model = model_of(attention).float()
    with pytest.warns(DeprecationWarning, match='torch.ao.quantization'):
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    assert not any(type(module) is nn.Linear for module in quantised.modules())
    with torch.no_grad():
        for a, b in zip(model(image_of().float()), quantised(image_of().float())):
            assert (a - b).norm() < 0.1 * a.norm()


def differentiable(attention):
    """torch's fused kernels have first derivatives alone; its plain ones have all."""
    fused = attention in ('mhsa', 'decomposed')
    return sdpa_kernel(SDPBackend.MATH) if fused else nullcontext()


def functional_loss(model):
    def loss(parameters, image):
        return loss_of(torch.func.functional_call(model, parameters, (image,)))

    return loss


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('attention', ATTENTIONS)
def test_gradients_by_torch_func_and_per_sample_by_vmap(attention, mode):
    model, images = model_of(attention, mode), image_of()
    parameters = dict(model.named_parameters())
    loss = functional_loss(model)
    whole = torch.func.grad(loss)(parameters, images)
    expected = torch.autograd.grad(loss_of(model(images)), list(parameters.values()))
    for name, gradient in zip(parameters, expected):
        torch.testing.assert_close(whole[name], gradient, msg=name)
    single = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(
        parameters, images.unsqueeze(1)
    )
    for i, image in enumerate(images):
        alone = torch.func.grad(loss)(parameters, image.unsqueeze(0))
        for name in parameters:
            torch.testing.assert_close(single[name][i], alone[name], msg=name)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('attention', ATTENTIONS)
def test_jvp_is_the_directional_derivative(attention, mode):
    model, images = model_of(attention, mode), image_of()
    tangent = image_of().flip(0)
    with differentiable(attention):
        value, derivative = torch.func.jvp(lambda x: loss_of(model(x)), (images,), (tangent,))
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(model(x)), x)
    torch.testing.assert_close(value, loss_of(model(images)))
    torch.testing.assert_close(derivative, (gradient * tangent).sum())


def test_forward_mode_without_transforms():
    module, x = Mlp(4).double(), torch.randn(1, 2, 2, 4, dtype=torch.float64)
    module.act.bias.data.fill_(0.3)
    tangent = torch.randn_like(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        found = torch.autograd.forward_ad.unpack_dual(module.eval()(dual)).tangent
    torch.testing.assert_close(found, torch.func.jvp(module, (x,), (tangent,))[1])


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('attention', ATTENTIONS)
def test_double_backward(attention, mode):
    """A gradient penalty's gradient against finite differences."""
    model = model_of(attention, mode)
    weight = model.stages[2].blocks[0].token_mixer.qkv.weight
    scale = model.stages[0].blocks[0].mlp.act.scale

    def penalty(create_graph):
        x = image_of().requires_grad_()
        with differentiable(attention):
            (gradient,) = torch.autograd.grad(loss_of(model(x)), x, create_graph=create_graph)
        return gradient.square().sum()

    for parameter in (weight, scale):
        (found,) = torch.autograd.grad(penalty(True), parameter)
        index, step = divmod(found.abs().argmax().item(), found.shape[-1]), 1e-5
        index = index if found.ndim == 2 else (0,)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[index] += sign * step
            values.append(penalty(False).item())
            with torch.no_grad():
                parameter[index] -= sign * step
        expected = (values[0] - values[1]) / (2 * step)
        assert found[index].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('module', [Mlp, SepConv, lambda dim: build_attention('imhsa', dim, 2, 2)])
def test_second_derivatives_in_training(module):
    torch.manual_seed(0)
    layer = module(4).double().train()
    for parameter in layer.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(1, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('gradients', [True, False])
@pytest.mark.parametrize('attention', ATTENTIONS)
def test_an_empty_batch(attention, mode, gradients):
    model = model_of(attention, mode)
    with torch.set_grad_enabled(gradients):
        maps = model(image_of(0))
    assert [tuple(y.shape) for y in maps] == [
        (0, 8, 16, 12),
        (0, 16, 8, 6),
        (0, 32, 4, 3),
        (0, 64, 2, 2),
    ]
    if gradients:
        sum(y.sum() for y in maps).backward()
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(copied):
    model = model_of()
    twin = copied(model)
    model.landmarks = 1
    assert twin.landmarks == 2
    model.landmarks = 2
    for a, b in zip(model(image_of()), twin(image_of())):
        assert torch.equal(a, b)


SIZES = ((16, 12), (17, 23))  # of stage 2's input


def two_stages(attention='imhsa', mode='eval'):
    """Stages 2 and 3: both kinds of blocks, and no more, for compilers take a minute for them."""
    return nn.Sequential(*model_of(attention, mode).stages[1:3])


def maps_of(size):
    return torch.randn(2, 8, *size, generator=torch.Generator().manual_seed(1)).double()


def test_compiled_by_inductor():
    torch._dynamo.reset()
    model = two_stages().float()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for size in SIZES:
            x = maps_of(size).float()
            torch.testing.assert_close(model(x), compiled(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('attention', ATTENTIONS)
def test_a_compiled_training_step(attention):
    """With the graphs of both passes; inductor itself fails on backward passes of any size."""
    torch._dynamo.reset()
    model = two_stages(attention, 'train')
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True, dynamic=True)
    for size in SIZES:
        gradients = []
        for run in (model, compiled):
            model.zero_grad()
            run(maps_of(size)).square().mean().backward()
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_no_more_than_five_frames_from_the_attention_to_its_softmax(monkeypatch):
    depths = []

    def softmax_(logits, dim):
        stack = traceback.extract_stack(sys._getframe(1))
        names = [frame.name for frame in stack if '/mmivit/' in frame.filename]
        depths.append(len(names) - names.index('forward'))
        return logits.softmax(dim)

    monkeypatch.setattr('mmivit.models.attention.softmax_', softmax_)
    module, x = build_attention('imhsa', 8, 2, 2), torch.randn(1, 4, 4, 8)
    module.eval()(x)
    module.train()(x)
    with torch.no_grad():
        module.eval()(x)
    assert len(depths) == 6
    assert max(depths) <= 5
