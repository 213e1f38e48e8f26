"""State dicts of the kinds of weights that convert, small and with no two tensors alike."""

import re

import torch
from timm.models import metaformer

from mmivit.models import IViT


def randomise(module):
    """Every parameter away from its initial value, so that none can be mixed up unnoticed."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05, generator=generator)
        else:
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
    return module.eval()


def small_caformer(**options):
    """timm's CAFormer at the size of iViT-Nano."""
    model = metaformer.MetaFormer(
        depths=(2, 2, 4, 2),
        dims=(32, 64, 128, 256),
        token_mixers=[metaformer.SepConv] * 2 + [metaformer.Attention] * 2,
        norm_layers=[metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2,
        **options,
    )
    return randomise(model)


def as_the_authors_wrote_it(state):
    """timm's names of CAFormer back to sail-sg's, whose point-wise layers are linear."""
    renamed = {}
    for name, tensor in state.items():
        name = name.replace('stem.conv', 'downsample_layers.0.conv')
        name = name.replace('stem.norm', 'downsample_layers.0.post_norm')
        name = re.sub(r'stages\.(\d)\.downsample\.norm', r'downsample_layers.\1.pre_norm', name)
        name = re.sub(r'stages\.(\d)\.downsample', r'downsample_layers.\1', name)
        name = re.sub(r'stages\.(\d)\.blocks', r'stages.\1', name)
        name = name.replace('head.norm', 'norm').replace('head.fc', 'head')
        linear = re.search(r'pwconv\d\.weight|mlp\.fc\d\.weight', name)
        renamed[name] = tensor[:, :, 0, 0] if linear and tensor.ndim == 4 else tensor
    return renamed


def prefixed(state):
    """As the backbone of a detector has it."""
    return {f'backbone.{name}': tensor for name, tensor in state.items()}


def one_of_each():
    """A file's tensors by the name of their kind, iViT's with each of the attentions."""
    caformer = small_caformer().state_dict()
    states = dict(caformer=caformer, metaformer=as_the_authors_wrote_it(caformer))
    for attention in ('imhsa', 'interactive', 'mhsa', 'decomposed'):
        own = randomise(IViT('nano', attention=attention)).state_dict()
        states[f'ivit-{attention}'] = own
        states[f'openmmlab-{attention}'] = prefixed(own)
    return states


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
