"""A backbone that starts from weights that convert: MMEngine's ``init_cfg`` for iViT."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.dist import is_main_process
from mmengine.logging import print_log
from torch import Tensor, nn

from mmivit.errors import CheckpointError
from mmivit.registry import WEIGHT_INITIALIZERS
from mmivit.weights.agreement import standing
from mmivit.weights.checkpoint import naming
from mmivit.weights.converters import LINEAR, ConversionReport, convert, is_optional
from mmivit.weights.kinds import SOURCES
from mmivit.weights.sources import fetch

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
        try:
            with naming(self.checkpoint):
                converted, report = convert(
                    fetch(self.checkpoint),
                    attention=attention,
                    in_channels=module.stem.conv.in_channels,
                    drop=self.drop,
                    paper_start=self.paper_start,
                )
                own = _fitting(module, converted, report)
        except CheckpointError as error:
            raise CheckpointError(f'{error}. To start from scratch: {FROM_SCRATCH}') from error
        print_log(f'{self.checkpoint}\n{report.table()}', logger='current')
        module.load_state_dict(own, strict=False)
        # Other processes have the same weights, and wait where MMEngine joins them.
        if report.trained_with == 'mhsa' and attention in LINEAR and is_main_process():
            print_log(standing(module), logger='current')


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
