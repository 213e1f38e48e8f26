"""How far features are from those of the model that weights came from."""

import pytest
import timm
import torch
from torch import nn

from mmivit.analysis.agreement import agreement
from mmivit.models import IViT
from mmivit.weights.agreement import smooth_images
from mmivit.weights.converters import convert
from tests.weights.states import randomise, small_caformer

LINEAR = ('decomposed', 'imhsa')


def converted(state, attention, **options):
    model = IViT('nano', attention=attention, **options)
    model.load_state_dict(convert(state, attention=attention)[0], strict=False)
    return model


@torch.no_grad()
def tokens_after(model, images):
    """Of every block of stages 3 and 4, by the blocks called in turn: (B, H, W, C) each."""
    model.eval()
    x, tokens = model.stages[1](model.stages[0](model.stem(images))), []
    for stage in model.stages[2:]:
        x = stage.downsample(x.permute(0, 2, 3, 1))
        for block in stage.blocks:
            x = block(x)
            tokens.append(x)
        x = x.permute(0, 3, 1, 2)
    return tokens


@pytest.mark.parametrize('attention', LINEAR)
def test_errors_are_those_against_a_model_of_its_own(attention):
    mhsa = randomise(IViT('nano', attention='mhsa'))
    model = converted(mhsa.state_dict(), attention, drop_path_rate=0.5).train()
    model.stages[3].eval()
    modes = [module.training for module in model.modules()]
    images = torch.randn(2, 3, 150, 97)
    stream = torch.get_rng_state()
    found = agreement(model, images)
    assert torch.equal(torch.get_rng_state(), stream)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert [(stage.stage, len(stage.blocks)) for stage in found] == [
        ('stages.2', 4),
        ('stages.3', 2),
    ]
    expected = [
        ((f - g).norm() / g.norm()).item()
        for f, g in zip(tokens_after(model, images), tokens_after(mhsa, images))
    ]
    assert [e for stage in found for e in stage.blocks] == pytest.approx(expected, rel=1e-4)
    assert found[1].error == found[1].blocks[-1] > 1e-3
    # The same against the model that was converted, and against CAFormer, whose tokens are flat.
    for stage, other in zip(found, agreement(model, images, mhsa)):
        assert stage.blocks == pytest.approx(other.blocks, rel=1e-4)


def test_against_caformer_itself():
    caformer = small_caformer()
    model = converted(caformer.state_dict(), 'imhsa')
    images = torch.randn(1, 3, 96, 64)
    for own, other in zip(agreement(model, images), agreement(model, images, caformer)):
        assert own.blocks == pytest.approx(other.blocks, rel=1e-3)
    assert not any(module._forward_hooks for module in caformer.modules())


def test_mhsa_agrees_with_itself():
    model = randomise(IViT('nano', attention='mhsa', out_indices=(2,)))
    (stage,) = agreement(model, torch.randn(1, 3, 64, 64))
    assert stage.blocks == (0, 0, 0, 0)


def test_classifiers_and_whole_models_are_compared_as_their_backbones():
    backbone = randomise(IViT('nano'))
    classifier = timm.create_model('ivit_nano', num_classes=5)
    classifier.load_state_dict(backbone.state_dict(), strict=False)
    whole = nn.ModuleDict(dict(backbone=backbone, neck=nn.Identity()))
    images = torch.randn(1, 3, 64, 96)
    expected = agreement(backbone, images)
    assert agreement(classifier, images) == agreement(whole, images) == expected


def test_what_cannot_be_compared_is_named():
    images = torch.randn(1, 3, 64, 64)
    with pytest.raises(ValueError, match='has no attention to compare'):
        agreement(IViT('nano', out_indices=(0, 1)), images)
    with pytest.raises(ValueError, match=r'the reference, a IViT, has no stages\.3\.blocks\.0'):
        agreement(IViT('nano'), images, IViT('nano', out_indices=(2,)))
    with pytest.raises(ValueError, match=r'\(1, 16, 128\), that of the reference \(1, 16, 320\)'):
        agreement(IViT('nano'), images, IViT('tiny'))


def test_nothing_stays_behind_when_the_model_fails():
    model = IViT('nano')
    with pytest.raises(ValueError, match='at least'):
        agreement(model, torch.zeros(1, 3, 8, 8))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_synthetic_images_are_smooth_and_always_the_same():
    images = smooth_images(2, 4, 128)
    assert images.shape == (2, 4, 128, 128)
    assert torch.equal(images, smooth_images(2, 4, 128))
    torch.testing.assert_close(images.mean((2, 3)), torch.zeros(2, 4), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std((2, 3)), torch.ones(2, 4), atol=1e-3, rtol=0)
    # Neighbours are alike, as in photographs and unlike in noise.
    assert (images[..., 1:] * images[..., :-1]).mean() > 0.7
