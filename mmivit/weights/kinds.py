"""Kinds of weights that convert: one object each, which holds all that is particular to it.

A new kind is a class here and its place in :data:`SOURCES`; nothing else asks which kind it has.
Models stand in others (a teacher, a wrapper, ``net``), which puts a prefix before all their names:
kinds know their own names, and :func:`find_kind` finds the prefix.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from itertools import islice

from torch import Tensor

from mmivit.errors import CheckpointError
from mmivit.utils.text import listed, printable

STEM = 'stem.conv.weight'
MLP = 'stages.0.blocks.0.mlp.fc1.weight'
MOST_PLACES = 16  # where models are looked for in a file

# Names by which files of other models are told, for the message that refuses them.
FOREIGN = (
    (
        r'\.(layer|res)_scale1\.scale$',
        'another MetaFormer (PoolFormer, ConvFormer) without attention in stage 3',
    ),
    (r'layer\d\.\d+\.conv\d\.weight$', 'a ResNet'),
    (r'relative_position_bias_table$', 'a Swin Transformer'),
    (r'attn\.(sr|kv)\.', 'a PVT or MiT'),
    (r'(conv_dw|dwconv|depthwise_conv)\.weight$', 'a ConvNeXt or another convolutional network'),
    (r'(^|\.)(cls_token|pos_embed)$', 'a plain vision transformer'),
    (r'features\.\d+\.', 'a torchvision convolutional network'),
)


class WeightsKind(ABC):
    """Weights of one model under one scheme of names.

    Attributes:
        name: by which it is asked for, in ``source=`` and ``--source``.
        what: whose weights they are, for messages.
        stem: a tensor that they all have, by which prefixes are found.
        hub: pattern of the names of timm's pretrained models that have such weights, if any.
        attention: what they become unless another is asked for; None for the one that they were
            trained with.
        head_dim: width of the heads, where it is the same in all such weights.
    """

    name: str
    what: str
    stem: str = STEM
    hub: str | None = None
    attention: str | None = None
    head_dim: int | None = None

    @abstractmethod
    def matches(self, state_dict: dict[str, Tensor]) -> bool:
        """Whether a file's tensors are of this kind, by their names and numbers of axes."""

    @abstractmethod
    def rename(self, name: str) -> str | None:
        """iViT's name for a tensor, as the classifier has it; None leaves the tensor out."""

    @abstractmethod
    def trained_with(self, state: dict[str, Tensor]) -> str:
        """Which of the four attentions the weights were trained with.

        Args:
            state: the tensors, renamed.
        """


class IViTWeights(WeightsKind):
    """An iViT's own: the backbone's, or timm's classifier's."""

    name = 'ivit'
    what = 'iViT'

    def matches(self, state_dict: dict[str, Tensor]) -> bool:
        return STEM in state_dict and MLP in state_dict and state_dict[MLP].ndim != 4

    def rename(self, name: str) -> str | None:
        return name

    def trained_with(self, state: dict[str, Tensor]) -> str:
        """'mhsa' stands for 'decomposed' from before it had `content` as well."""
        if any('.interaction_q' in name or '.interaction_k' in name for name in state):
            return 'imhsa'
        if any(name.endswith('.content') for name in state):
            return 'decomposed'
        return 'interactive' if any('.interaction' in name for name in state) else 'mhsa'


class OpenMMLabWeights(IViTWeights):
    """The iViT in a detector, a segmentor or mmpretrain's classifier."""

    name = 'openmmlab'
    what = 'detectors and segmentors with an iViT'
    stem = f'backbone.{STEM}'

    def matches(self, state_dict: dict[str, Tensor]) -> bool:
        return super().matches(_under('backbone.', state_dict))

    def rename(self, name: str) -> str | None:
        return name.removeprefix('backbone.') if name.startswith('backbone.') else None


class CAFormerWeights(WeightsKind):
    """timm's CAFormer, whose MLPs are 1 x 1 convolutions; its classifier is of another form."""

    name = 'caformer'
    what = "timm's CAFormer"
    hub: str | None = 'caformer*'
    attention = 'imhsa'
    head_dim = 32

    def matches(self, state_dict: dict[str, Tensor]) -> bool:
        return (
            {STEM, MLP, 'stages.2.blocks.0.token_mixer.qkv.weight'} <= state_dict.keys()
        ) and state_dict[MLP].ndim == 4

    def rename(self, name: str) -> str | None:
        if name.startswith('head.'):
            return None
        return re.sub(r'(res_scale\d)\.scale$', r'\1', name)

    def trained_with(self, state: dict[str, Tensor]) -> str:
        return 'mhsa'


class MetaFormerWeights(CAFormerWeights):
    """CAFormer as its authors, sail-sg, wrote it; timm has its weights under other names."""

    name = 'metaformer'
    what = "its authors' CAFormer"
    hub = None
    stem = 'downsample_layers.0.conv.weight'
    NAMES = (  # the authors', timm's
        (r'^downsample_layers\.0\.post_norm\.', 'stem.norm.'),
        (r'^downsample_layers\.0\.', 'stem.'),
        (r'^downsample_layers\.(\d)\.pre_norm\.', r'stages.\1.downsample.norm.'),
        (r'^downsample_layers\.(\d)\.', r'stages.\1.downsample.'),
        (r'^stages\.(\d)\.(\d+)\.', r'stages.\1.blocks.\2.'),
        (r'^norm\.', 'head.'),
    )

    def matches(self, state_dict: dict[str, Tensor]) -> bool:
        return {self.stem, 'stages.2.0.token_mixer.qkv.weight'} <= state_dict.keys()

    def rename(self, name: str) -> str | None:
        for pattern, replacement in self.NAMES:
            name, count = re.subn(pattern, replacement, name)
            if count:
                break
        return super().rename(name)


# By name, in the order in which a file is compared with them.
SOURCES: dict[str, WeightsKind] = {
    kind.name: kind
    for kind in (OpenMMLabWeights(), IViTWeights(), CAFormerWeights(), MetaFormerWeights())
}


def find_kind(state_dict: dict[str, Tensor], source: str | None = None) -> tuple[WeightsKind, str]:
    """The kind of a file's tensors, and the prefix before its names; others are of other parts.

    Args:
        state_dict: the tensors under the file's names.
        source: the kind they must be of, one of :data:`SOURCES`; told by the names if not given.
            Weights that are like none of the kinds are taken for what the caller says.

    Raises:
        CheckpointError: they are of another kind, of none, or of several models.
        ValueError: no kind is called so.
    """
    if source is not None and source not in SOURCES:
        raise ValueError(f'source={source!r}: expected one of {tuple(SOURCES)}')
    places = _find_places(state_dict)
    fitting = [(kind, prefix) for kind, prefix in places if source in (None, kind.name)]
    if places and not fitting:
        raise CheckpointError(
            f'this is no {source!r}: by its names it is {places[0][0].name!r}; name that, or '
            'no source (source, --source)'
        )
    # One whose names stand as they are is the file's own; another may be its teacher.
    fitting = [place for place in fitting if not place[1]] or fitting
    if len(fitting) > 1:
        raise CheckpointError(
            f'it holds several models, whose names begin with {listed([p for _, p in fitting])}: '
            f"leave out all but one (drop=['{printable(fitting[0][1])}*'], --drop)"
        )
    if fitting:
        return fitting[0]
    if source is not None:
        return SOURCES[source], ''
    names = list(state_dict)
    if not names:
        raise CheckpointError('it holds no weights')
    seems = next(
        (what for pattern, what in FOREIGN if any(re.search(pattern, n) for n in names)),
        'of an unknown model',
    )
    raise CheckpointError(
        f'it seems to be {seems} (its first names: {listed(names[:3])}); what converts: '
        f'{", ".join(kind.what for kind in SOURCES.values())}'
    )


def _find_places(state_dict: dict[str, Tensor]) -> list[tuple[WeightsKind, str]]:
    """The models in a file, each of the first kind that it is like, and their prefixes."""
    places: dict[str, tuple[WeightsKind, str]] = {}  # by the full names of their stems
    for kind in SOURCES.values():
        stems = (n for n in state_dict if f'.{n}'.endswith(f'.{kind.stem}') and n not in places)
        for stem in list(islice(stems, MOST_PLACES)):
            prefix = stem.removesuffix(kind.stem)
            if kind.matches(_under(prefix, state_dict)):
                places[stem] = (kind, prefix)
    return list(places.values())


def _under(prefix: str, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in state_dict.items() if n.startswith(prefix)}


def recognise(state_dict: dict[str, Tensor]) -> str:
    """What a state dict is of, one of :data:`SOURCES`, by its names.

    Raises:
        CheckpointError: nothing that converts; the message says what it seems to be.
    """
    return find_kind(state_dict)[0].name
