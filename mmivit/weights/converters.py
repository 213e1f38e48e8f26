"""Weights of other models into iViT, and back: pure functions from a state dict to a state dict.

iViT has CAFormer's scaffold, so CAFormer's ImageNet weights carry over whole: its queries, keys,
values and projections become iMHSA's, and the interaction, which CAFormer has not got, starts at
the identity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch

import torch
from torch import Tensor

from mmivit.errors import CheckpointError
from mmivit.models.attention import ATTENTIONS
from mmivit.models.ivit import ARCHITECTURES, ATTENTION_STAGES, NUM_STAGES, IViT, read_arch
from mmivit.utils.text import listed, printable

TARGETS = ('backbone', 'timm')
MOST_BLOCKS = 512  # ten times the deepest; building the model to compare with takes time for each
MAX_ROWS = 12  # names listed per group of a report

# Names by which a file is told from others, and what it then is.
FOREIGN = (
    (r'layer\d\.\d+\.conv\d\.weight$', 'a ResNet'),
    (r'relative_position_bias_table$', 'a Swin Transformer'),
    (r'attn\.(sr|kv)\.', 'a PVT or MiT'),
    (r'(conv_dw|dwconv|depthwise_conv)\.weight$', 'a ConvNeXt or another convolutional network'),
    (r'(^|\.)(cls_token|pos_embed)$', 'a plain vision transformer'),
    (r'features\.\d+\.', 'a torchvision convolutional network'),
)
HEAD = ('head.norm.weight', 'head.norm.bias', 'head.fc.weight', 'head.fc.bias')
METAFORMER_NAMES = (  # sail-sg's names of what timm and we call otherwise
    (r'^downsample_layers\.0\.post_norm\.', 'stem.norm.'),
    (r'^downsample_layers\.0\.', 'stem.'),
    (r'^downsample_layers\.(\d)\.pre_norm\.', r'stages.\1.downsample.norm.'),
    (r'^downsample_layers\.(\d)\.', r'stages.\1.downsample.'),
    (r'^stages\.(\d)\.(\d+)\.', r'stages.\1.blocks.\2.'),
    (r'^norm\.', 'head.'),
)


@dataclass
class ConversionReport:
    """What became of every tensor. Names are the result's, except those that found no place.

    Attributes:
        source: what the file was read as, one of :data:`SOURCES`.
        target: 'backbone' or 'timm'.
        arch: the architecture by name, or depths and widths if it has none.
        matched: tensors of the result.
        missing: tensors of the model that the file lacks: they keep their initial value.
        unexpected: tensors of the file that nobody asked to leave out. :func:`convert` refuses
            these, so a report that it returns has none.
        reshaped: tensors whose shape changed, and how.
        dropped: tensors of the file left out because the target has no such part.
    """

    source: str
    target: str
    arch: str
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)

    def table(self) -> str:
        """A table for people: counts, and the names except those that simply match."""
        rows = [f'{self.source} -> {self.target}, iViT {self.arch}']
        reshaped = [f'{name}: {change}' for name, change in self.reshaped.items()]
        for what, names, shown in (
            ('matched', self.matched, False),
            ('reshaped', reshaped, True),
            ('missing', self.missing, True),
            ('unexpected', self.unexpected, True),
            ('left out', self.dropped, True),
        ):
            rows.append(f'  {what:<11}{len(names):>5}')
            if shown:
                rows += [f'             {printable(name)}' for name in names[:MAX_ROWS]]
                if len(names) > MAX_ROWS:
                    rows.append(f'             and {len(names) - MAX_ROWS} more')
        return '\n'.join(rows)


def convert(
    state_dict: dict[str, Tensor],
    source: str | None = None,
    arch: str | None = None,
    *,
    target: str = 'backbone',
    attention: str | None = None,
    in_channels: int | None = None,
    drop: Sequence[str] = (),
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Convert weights to those of an iViT backbone or of a timm iViT.

    Args:
        state_dict: names and tensors, without a checkpoint's other contents.
        source: what to read them as, one of :data:`SOURCES`; told by the names if not given.
        arch: what the architecture must be; told by the shapes if not given.
        target: 'backbone' (bare names, for ``mmivit.IViT``) or 'timm' (for ``ivit_*``; the head
            is kept if there is one).
        attention: one of the four; the source's own if not given, 'imhsa' for CAFormer.
        in_channels: channels of the input image; the source's if not given. The first layer is
            adapted by :func:`adapt_input_channels`.
        drop: patterns (``*`` and ``?``) of names to leave out.

    Returns:
        The converted tensors and a report. Tensors are the source's own where nothing changed.

    Raises:
        CheckpointError: it is another model's, incomplete, of another architecture than asked
            for, or holds tensors that have no place in an iViT.
    """
    if target not in TARGETS:
        raise ValueError(f'target={target!r}: expected one of {TARGETS}')
    if source is not None and source not in SOURCES:
        raise ValueError(f'source={source!r}: expected one of {tuple(SOURCES)}')
    if attention is not None and attention not in ATTENTIONS:
        raise ValueError(f'attention={attention!r}: expected one of {tuple(ATTENTIONS)}')
    source = source or recognise(state_dict)
    idle = [pattern for pattern in drop if not any(fnmatch(name, pattern) for name in state_dict)]
    if idle:
        raise CheckpointError(f'nothing is called {listed(idle)}, which was to be left out')
    state, dropped = {}, []
    for name, tensor in state_dict.items():
        key = None if any(fnmatch(name, pattern) for pattern in drop) else SOURCES[source](name)
        if key is None or (key.startswith('head.') and target == 'backbone'):
            dropped.append(name)
        else:
            state[key] = tensor
    try:
        shape = _read_shape(state, arch)
        expected = _expected(state, shape, attention, target, in_channels, source)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(
            f'this is no {source!r}: {type(error).__name__} {printable(error)}'
        ) from error
    report = ConversionReport(source, target, _arch_name(shape), dropped=dropped)
    converted = {}
    for key, tensor in state.items():
        if key in expected:
            converted[key] = _reshape(key, tensor, expected[key])
            report.matched.append(key)
            if converted[key].shape != tensor.shape:
                change = f'{tuple(tensor.shape)} -> {tuple(converted[key].shape)}'
                report.reshaped[key] = change
        elif is_optional(key):  # the other task's norms, the other attention's interaction
            report.dropped.append(key)
        else:
            report.unexpected.append(key)
    report.missing = [key for key in expected if key not in converted]
    if report.unexpected:
        raise CheckpointError(
            f'{len(report.unexpected)} tensors have no place in an iViT: '
            f'{listed(report.unexpected)}. Leave them out by name (drop, --drop) if they are '
            'not needed'
        )
    later: tuple[str, ...] = ()
    if target == 'backbone':  # whose last stages are not built for out_indices=(1, 2)
        built = [i for i in range(NUM_STAGES) if any(k.startswith(f'stages.{i}.') for k in state)]
        later = tuple(f'stages.{i}.' for i in range(max(built, default=NUM_STAGES) + 1, NUM_STAGES))
    lost = [key for key in report.missing if not (is_optional(key) or key.startswith(later))]
    if lost:
        raise CheckpointError(
            f'the weights are incomplete, {len(lost)} tensors of iViT {report.arch} are missing: '
            f'{listed(lost)}'
        )
    return converted, report


def recognise(state_dict: dict[str, Tensor]) -> str:
    """What a state dict is of, one of :data:`SOURCES`, by its names.

    Raises:
        CheckpointError: nothing that converts; the message says what it seems to be.
    """
    names = list(state_dict)
    mlp = state_dict.get('stages.0.blocks.0.mlp.fc1.weight')
    if 'backbone.stem.conv.weight' in state_dict:
        return 'openmmlab'
    if 'stem.conv.weight' in state_dict and mlp is not None:
        source = 'caformer' if mlp.ndim == 4 else 'ivit'
        attention = 'stages.2.blocks.0.token_mixer.qkv.weight'
    elif 'downsample_layers.0.conv.weight' in state_dict:
        source, attention = 'metaformer', 'stages.2.0.token_mixer.qkv.weight'
    else:
        if not names:
            raise CheckpointError('it holds no weights')
        seems = next(
            (what for pattern, what in FOREIGN if any(re.search(pattern, n) for n in names)),
            'of an unknown model',
        )
        raise CheckpointError(
            f'it seems to be {seems} (its first names: {listed(names[:3])}), and only '
            f'iViT, CAFormer and detectors and segmentors with an iViT convert'
        )
    if source != 'ivit' and attention not in state_dict:
        raise CheckpointError(
            'it seems to be another MetaFormer (PoolFormer, ConvFormer) without attention in '
            'stage 3; of that family only CAFormer converts'
        )
    return source


def adapt_input_channels(weight: Tensor, in_channels: int) -> Tensor:
    """The first convolution for another number of channels, with responses of the same size.

    One channel: the sum over the old ones, as if the grey image were repeated. Several: the old
    channels in turn, scaled by old / new.

    Args:
        weight: (C', old, kh, kw).
        in_channels: new.

    Returns:
        (C', new, kh, kw).
    """
    old = weight.shape[1]
    if in_channels == old:
        return weight
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(in_channels) % old] * (old / in_channels)


def _from_caformer(name: str) -> str | None:
    """timm's CAFormer; its classifier is of another form."""
    if name.startswith('head.'):
        return None
    return re.sub(r'(res_scale\d)\.scale$', r'\1', name)


def _from_metaformer(name: str) -> str | None:
    """CAFormer as its authors wrote it."""
    for pattern, replacement in METAFORMER_NAMES:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return _from_caformer(name)


def _from_openmmlab(name: str) -> str | None:
    """The backbone of a detector, a segmentor or mmpretrain's classifier."""
    return name.removeprefix('backbone.') if name.startswith('backbone.') else None


# What each name becomes; None is left out.
SOURCES: dict[str, Callable[[str], str | None]] = {
    'ivit': lambda name: name,
    'caformer': _from_caformer,
    'metaformer': _from_metaformer,
    'openmmlab': _from_openmmlab,
}


def _read_shape(state: dict[str, Tensor], arch: str | None) -> dict:
    """Depths and widths, as an architecture's dict."""
    depths, widths = [], []
    for i in range(NUM_STAGES):
        blocks = [re.match(rf'stages\.{i}\.blocks\.(\d+)\.', name) for name in state]
        norm = state.get(f'stages.{i}.blocks.0.norm1.weight')
        if norm is None:
            break
        depths.append(len({match[1] for match in blocks if match}))
        widths.append(len(norm))
    if sum(depths) > MOST_BLOCKS:
        raise CheckpointError(f'depths {depths}: no iViT has more than {MOST_BLOCKS} blocks')
    found = (tuple(depths), tuple(widths))
    known = [read_arch(arch)] if arch else list(map(read_arch, ARCHITECTURES))
    fits = [fit for fit in known if tuple(part[: len(depths)] for part in fit) == found]
    if fits:
        depths, widths = fits[0]
    elif arch:
        raise CheckpointError(f'depths {depths} and widths {widths}: expected those of {arch!r}')
    elif len(depths) < NUM_STAGES:
        raise CheckpointError(
            f'the weights end after stage {len(depths)} (depths {depths}, widths {widths}), which '
            'is no known architecture; name it (arch, --arch)'
        )
    return dict(depths=tuple(depths), widths=tuple(widths))


def _arch_name(shape: dict) -> str:
    names = [name for name in ARCHITECTURES if read_arch(name) == read_arch(shape)]
    return names[0] if names else f'{shape["depths"]}, {shape["widths"]}'


def _expected(
    state: dict[str, Tensor],
    shape: dict,
    attention: str | None,
    target: str,
    in_channels: int | None,
    source: str,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model that the weights are converted for."""
    mixed = [name for name in state if '.interaction' in name]
    if attention is None:
        if any('.interaction_q' in name or '.interaction_k' in name for name in mixed):
            attention = 'imhsa'
        else:
            # 'mhsa' and 'decomposed' have the same tensors.
            plain = 'mhsa' if source in ('ivit', 'openmmlab') else 'imhsa'
            attention = 'interactive' if mixed else plain
    deep = [shape['widths'][i] for i in ATTENTION_STAGES]
    head_dim = 32 if not any(width % 32 for width in deep) else math.gcd(*deep)
    if mixed and len(state[mixed[0]]):
        stage = int(mixed[0].split('.')[1])
        head_dim = shape['widths'][stage] // len(state[mixed[0]])
    with torch.device('meta'):
        model = IViT(
            shape,
            in_channels=state['stem.conv.weight'].shape[1] if in_channels is None else in_channels,
            attention=attention,
            interaction='both' if any(name.endswith('_pre') for name in mixed) else 'post',
            head_dim=head_dim,
        )
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if target == 'timm':
        expected = {name: s for name, s in expected.items() if not name.startswith('norm')}
        # Any number of classes will do.
        expected |= {name: tuple(state[name].shape) if name in state else () for name in HEAD}
    return expected


def _reshape(key: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    found = tuple(tensor.shape)
    if key == 'stem.conv.weight' and found[:1] + found[2:] == shape[:1] + shape[2:]:
        return adapt_input_channels(tensor, shape[1])
    if len(shape) == 2 and found == (*shape, 1, 1):  # a 1 x 1 convolution is a linear layer
        return tensor[:, :, 0, 0]
    if found != shape:
        raise CheckpointError(f'{key} has the shape {found}: expected {shape}')
    return tensor


def is_optional(key: str) -> bool:
    """Whether a model without this tensor is whole: dense norms, interaction, the head."""
    return bool(re.match(r'norm\d\.|head\.|.*\.interaction', key))
