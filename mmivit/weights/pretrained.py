"""A backbone that starts from weights that convert: MMEngine's ``init_cfg`` for iViT."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.model import update_init_info
from torch import Tensor, nn

from mmivit.errors import CheckpointError
from mmivit.models.attention import MHSA
from mmivit.models.ivit import IViT
from mmivit.registry import WEIGHT_INITIALIZERS
from mmivit.weights.agreement import standing
from mmivit.weights.checkpoint import find_state_dict, naming
from mmivit.weights.converters import LINEAR, ConversionReport, convert, is_optional
from mmivit.weights.kinds import SOURCES
from mmivit.weights.sources import fetch_checkpoint
from mmivit.weights.stored_config import stored_backbone

FROM_SCRATCH = '--cfg-options model.backbone.init_cfg=None'


@WEIGHT_INITIALIZERS.register_module()
class PretrainedIViT:
    """Initialise an iViT backbone from any weights that convert; an ``init_cfg``.

        backbone=dict(
            type='mmivit.IViT',
            init_cfg=dict(type='mmivit.PretrainedIViT', checkpoint='caformer_s18.pth'))

    The log says what became of every tensor and, where landmarks take the place of whole maps, how
    far that moved the features.

    Args:
        checkpoint: a file (``.pth``, ``.safetensors``), a URL, or ``timm://`` and the name of a
            model in timm's hub.
        drop: patterns of names in it to leave out.
        paper_start: as in :func:`mmivit.converters.convert`.

    Raises:
        CheckpointError: when called: there is no such checkpoint, or it does not fit.
    """

    def __init__(
        self, checkpoint: str, drop: Sequence[str] = (), paper_start: bool = False
    ) -> None:
        self.checkpoint = checkpoint
        self.drop = drop
        self.paper_start = paper_start

    def __call__(self, module: nn.Module) -> None:
        # A module's attention is told by its tensors, as a file's is.
        attention = SOURCES['ivit'].trained_with(module.state_dict())
        mixer = next((part for part in module.modules() if isinstance(part, MHSA)), None)
        try:
            with naming(self.checkpoint):
                checkpoint = fetch_checkpoint(self.checkpoint)
                converted, report = convert(
                    find_state_dict(checkpoint),
                    attention=attention,
                    in_channels=module.stem.conv.in_channels,
                    head_dim=mixer and _head_dim(mixer),
                    drop=self.drop,
                    paper_start=self.paper_start,
                )
                own = _fitting(module, converted, report)
        except CheckpointError as error:
            raise CheckpointError(f'{error}. To start from scratch: {FROM_SCRATCH}') from error
        print_log(f'{self.checkpoint}\n{report.table()}', logger='current')
        for doubt in _doubts(mixer, converted, report.head_dim, stored_backbone(checkpoint)):
            print_log(f'{self.checkpoint}: {doubt}', logger='current', level=logging.WARNING)
        module.load_state_dict(own, strict=False)
        if hasattr(module, '_params_init_info'):  # MMEngine's table of what was initialised how
            update_init_info(module, f'{type(self).__name__}: load from {self.checkpoint}')
        # Other processes have the same weights, and wait where MMEngine joins them.
        if report.trained_with == 'mhsa' and attention in LINEAR and is_main_process():
            print_log(standing(module), logger='current')


def _doubts(
    mixer: MHSA | None, converted: dict[str, Tensor], head_dim: int | None, trained: dict
) -> Iterator[str]:
    """What may change the meaning of weights though every shape fits.

    Args:
        mixer: an attention of the backbone, if it has one.
        converted: the weights.
        head_dim: width of their heads, if the file's tensors tell.
        trained: the settings of the backbone that they were trained in, if the file has them.
    """
    if mixer is None:
        return
    settings: list[tuple[str, Any, Any]] = [
        ('head_dim', _head_dim(mixer), head_dim or trained.get('head_dim'))
    ]
    if hasattr(mixer, 'interaction_position') and any('.interaction' in n for n in converted):
        both = any(name.endswith('_pre') for name in converted)
        own, theirs = mixer.interaction_position, 'both' if both else trained.get('interaction')
        # 'both' takes a single interaction for that behind the softmax; the other is the identity.
        settings.append(('interaction', 'post' if own == 'both' != theirs else own, theirs))
    for name, own, theirs in settings:
        if theirs not in (None, own):
            yield f'{name} is {own!r} here, {theirs!r} in it: its weights mean something else here'
        elif theirs is None and own != inspect.signature(IViT).parameters[name].default:
            yield f'nothing in it tells its {name}; taken for {own!r}, as here'


def _head_dim(mixer: MHSA) -> int:
    return mixer.qkv.in_features // mixer.num_heads


def _fitting(module: nn.Module, converted: dict[str, Tensor], report: ConversionReport) -> dict:
    """What of the converted tensors the module has; whatever it must have is there, and fits."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in converted.items()}
    stages = tuple(f'stages.{i}.' for i in range(len(module.stages)))
    wrong = [
        f'{name} is {found.get(name, "missing")}, expected {expected.get(name, "nothing")}'
        for name in sorted(expected.keys() | found.keys())
        if found.get(name) != expected.get(name)
        # Initial values stand for what the source has not got; later stages may be left over.
        and not (is_optional(name) and (name not in found or name not in expected))
        and (name in expected or name.startswith(stages))
    ]
    if wrong:
        raise CheckpointError(
            f'the weights are of iViT {report.arch} and do not fit this backbone: {wrong[0]}'
        )
    return {name: tensor for name, tensor in converted.items() if name in expected}
