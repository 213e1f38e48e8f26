"""Weights of other models into iViT, and back: of a state dict, and of a file.

:func:`convert` is a pure function. What is particular to the model that weights come from stands
in :mod:`mmivit.weights.kinds`.

iViT has CAFormer's scaffold, so CAFormer's ImageNet weights carry over whole: its queries, keys,
values and projections become iMHSA's, and the interaction, which CAFormer has not got, starts at
the identity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmivit.errors import CheckpointError
from mmivit.models.attention import ATTENTIONS, LOCAL_START
from mmivit.models.ivit import (
    ARCHITECTURES,
    ATTENTION_STAGES,
    NUM_STAGES,
    IViT,
    name_arch,
    read_arch,
    read_sizes,
)
from mmivit.utils.files import check_absent
from mmivit.utils.text import listed, printable
from mmivit.version import __version__
from mmivit.weights.checkpoint import naming, write_checkpoint
from mmivit.weights.kinds import find_kind
from mmivit.weights.sources import checksum, fetch

LINEAR = ('decomposed', 'imhsa')
TARGETS = ('backbone', 'timm')
MOST_BLOCKS = 512  # ten times the deepest; building the model to compare with takes time for each
MIXED = re.compile(r'\.(interaction\w*|content)$')  # what has an entry or a row for each head
MAX_ROWS = 12  # names listed per group of a report
HEAD = ('head.norm.weight', 'head.norm.bias', 'head.fc.weight', 'head.fc.bias')


@dataclass
class ConversionReport:
    """What became of every tensor. Names are the result's, except those that found no place.

    Attributes:
        source: what the file was read as, one of :data:`mmivit.converters.SOURCES`.
        target: 'backbone' or 'timm'.
        arch: the architecture by name, or depths and widths if it has none.
        trained_with: which of the four attentions the file's weights were trained with.
        matched: tensors of the result.
        missing: tensors of the model that the file lacks: they keep their initial value.
        unexpected: tensors of the file that nobody asked to leave out. :func:`convert` refuses
            these, so a report that it returns has none.
        reshaped: tensors whose shape changed, and how.
        dropped: tensors of the file left out because the target has no such part.
        started: tensors that the file has not got and that were set, so that iMHSA begins as the
            attention that the weights were trained with, and to what.
        prefix: what the file's names begin with before those of the source's kind.
        head_dim: width of the file's heads; None if nothing in it tells.
    """

    source: str
    target: str
    arch: str
    trained_with: str
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    started: dict[str, float] = field(default_factory=dict)
    prefix: str = ''
    head_dim: int | None = None

    def table(self) -> str:
        """A table for people: counts, and the names except those that simply match."""
        under = f', under {printable(self.prefix)}' if self.prefix else ''
        rows = [f'{self.source}{under} -> {self.target}, iViT {self.arch}']
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
        if self.started:
            values = ', '.join(f'{name} {value:g}' for name, value in LOCAL_START.items())
            rows.append(
                f'  {"set":<11}{len(self.started):>5}\n             {values}: landmarks begin as '
                'the attention of these weights (paper_start, --paper-start: as the paper)'
            )
        return '\n'.join(rows)


def convert(
    state_dict: dict[str, Tensor],
    source: str | None = None,
    arch: str | None = None,
    *,
    target: str = 'backbone',
    attention: str | None = None,
    in_channels: int | None = None,
    head_dim: int | None = None,
    drop: Sequence[str] = (),
    paper_start: bool = False,
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Convert weights to those of an iViT backbone or of a timm iViT.

    Args:
        state_dict: names and tensors, without a checkpoint's other contents.
        source: what they must be, one of :data:`mmivit.converters.SOURCES`; told by the names
            if not given.
        arch: what the architecture must be; told by the shapes if not given.
        target: 'backbone' (bare names, for ``mmivit.IViT``) or 'timm' (for ``ivit_*``; the head
            is kept if there is one).
        attention: one of the four; the source's own if not given, 'imhsa' for CAFormer.
        in_channels: channels of the input image; the source's if not given. The first layer is
            adapted by :func:`adapt_input_channels`.
        head_dim: width of the heads that the weights must be of; nothing in those of 'mhsa' tells.
        drop: patterns (``*`` and ``?``) of names to leave out.
        paper_start: let landmarks that take the place of whole maps start as the paper's, with
            ``content`` 1 and ``locality`` 0, and not so that the function is kept.

    Returns:
        The converted tensors and a report. Tensors are the source's own where nothing changed.

    Raises:
        CheckpointError: it is another model's, incomplete, of another source or architecture than
            asked for, or holds tensors that have no place in an iViT.
        ValueError: an option has a value that is not allowed.
    """
    if target not in TARGETS:
        raise ValueError(f'target={target!r}: expected one of {TARGETS}')
    if attention is not None and attention not in ATTENTIONS:
        raise ValueError(f'attention={attention!r}: expected one of {tuple(ATTENTIONS)}')
    idle = [pattern for pattern in drop if not any(fnmatch(name, pattern) for name in state_dict)]
    if idle:
        raise CheckpointError(f'nothing is called {listed(idle)}, which was to be left out')
    state, dropped = {}, []
    left_out = {name for name in state_dict if any(fnmatch(name, pattern) for pattern in drop)}
    asked = {name: tensor for name, tensor in state_dict.items() if name not in left_out}
    kind, prefix = find_kind(asked, source)
    renamed = {
        name: kind.rename(name.removeprefix(prefix)) if name.startswith(prefix) else None
        for name in state_dict
    }
    trained_with = kind.trained_with({key: state_dict[n] for n, key in renamed.items() if key})
    for name, tensor in state_dict.items():
        key = None if name in left_out else renamed[name]
        if key is None or (key.startswith('head.') and target == 'backbone'):
            dropped.append(name)
        else:
            state[key] = tensor
    attention = attention or kind.attention or trained_with
    try:
        shape = _read_shape(state, arch)
        told = _read_head_dim(state, shape) or kind.head_dim
        expected = _expected(state, shape, attention, told or head_dim, target, in_channels)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(
            f'this is no {kind.name!r}: {type(error).__name__} {printable(error)}'
        ) from error
    if told and head_dim not in (None, told):
        raise CheckpointError(
            f'its heads are {told} wide: expected {head_dim}. The weights mean something else in '
            f'others; set head_dim={told}'
        )
    report = ConversionReport(
        kind.name,
        target,
        name_arch(shape),
        trained_with,
        dropped=dropped,
        prefix=prefix,
        head_dim=told,
    )
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
    if attention in LINEAR and trained_with not in LINEAR and not paper_start:
        for key in expected.keys() - converted.keys():
            part = key.rpartition('.')[2]
            if part in LOCAL_START:
                converted[key] = torch.full(expected[key], LOCAL_START[part])
                report.started[key] = LOCAL_START[part]
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


def convert_file(
    src: str | Path,
    dst: str | Path,
    force: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> ConversionReport:
    """Convert a file, a URL or a timm model to a file; :func:`convert` on files.

    The result carries its source, the source's sha256, its architecture and the converter's
    version, as strings.

    Args:
        src: as for :func:`mmivit.weights.sources.fetch`.
        dst: ``.pth`` or ``.safetensors``.
        force: replace an existing file.
        dry_run: write nothing.
        options: of :func:`convert`.

    Raises:
        CheckpointError: the source does not convert.
        FileExistsError: the destination exists and ``force`` is off.
    """
    check_absent(dst, force or dry_run)
    with naming(src):
        weights = fetch(src)
        converted, report = convert(weights, **options)
    if not dry_run:
        meta = dict(
            source=printable(src if '://' in str(src) else Path(src).name),
            sha256=checksum(src, weights),
            arch=report.arch,
            target=report.target,
            converter=f'mmivit {__version__}',
        )
        write_checkpoint(dst, converted, meta, force)
    return report


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


def _read_shape(state: dict[str, Tensor], arch: str | None) -> dict:
    """Depths and widths, as an architecture's dict."""
    sizes = read_sizes({name: tuple(tensor.shape) for name, tensor in state.items()})
    depths, widths = sizes['depths'], sizes['widths']
    if sum(depths) > MOST_BLOCKS:
        raise CheckpointError(f'depths {depths}: no iViT has more than {MOST_BLOCKS} blocks')
    known = [read_arch(arch)] if arch else list(map(read_arch, ARCHITECTURES))
    fits = [fit for fit in known if tuple(part[: len(depths)] for part in fit) == (depths, widths)]
    if fits:
        depths, widths = fits[0]
    elif arch:
        raise CheckpointError(f'depths {depths} and widths {widths}: expected those of {arch!r}')
    elif len(depths) < NUM_STAGES:
        raise CheckpointError(
            f'the weights end after stage {len(depths)} (depths {depths}, widths {widths}), which '
            'is no known architecture; name it (arch, --arch)'
        )
    return dict(depths=depths, widths=widths)


def _read_head_dim(state: dict[str, Tensor], shape: dict) -> int | None:
    """Width of the heads, if there is a tensor with an entry or a row for each."""
    for name, tensor in state.items():
        if MIXED.search(name) and len(tensor):
            return shape['widths'][int(name.split('.')[1])] // len(tensor)
    return None


def _expected(
    state: dict[str, Tensor],
    shape: dict,
    attention: str,
    head_dim: int | None,
    target: str,
    in_channels: int | None,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model that the weights are converted for."""
    deep = [shape['widths'][i] for i in ATTENTION_STAGES]
    if head_dim is None or any(width % head_dim for width in deep):
        head_dim = 32 if not any(width % 32 for width in deep) else math.gcd(*deep)
    with torch.device('meta'):
        model = IViT(
            shape,
            in_channels=state['stem.conv.weight'].shape[1] if in_channels is None else in_channels,
            attention=attention,
            interaction='both' if any(name.endswith('_pre') for name in state) else 'post',
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
    """Whether a model without this tensor is whole: dense norms, the landmarks' own, the head."""
    return bool(re.match(r'norm\d\.|head\.|.*\.(interaction|content$|locality$)', key))
