"""The graphs of backbones and of untrained models beside torch: parity and time.

Of trained models see :mod:`mmivit.export.held_out`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from mmivit.apis.config import read_config
from mmivit.apis.models import build_model
from mmivit.errors import ExportError
from mmivit.export.parity import Parity
from mmivit.export.parity_detections import DetectionParity
from mmivit.export.targets import BackboneTarget, Target, find_target
from mmivit.models.ivit import ARCHITECTURES, IViT
from mmivit.utils.timing import compare

TIMES = ('torch, ms', 'onnxruntime, ms')


class Timed(NamedTuple):
    """How a graph compares with torch at one size, and what both take."""

    model: str
    compared: Sequence[str]  # columns of the parity
    parity: Parity | DetectionParity
    torch_seconds: float  # medians of a batch
    onnx_seconds: float

    @property
    def columns(self) -> tuple[str, ...]:
        """Of its table."""
        return (*self.compared, *TIMES)

    def cells(self) -> list[str]:
        """A row of a table of its columns."""
        times = (self.torch_seconds, self.onnx_seconds)
        return [*self.parity.cells(self.model), *(f'{1e3 * seconds:.1f}' for seconds in times)]


def benchmark_export(models: Sequence[str], seconds: float, folder: Path) -> Iterator[Timed]:
    """Compare and time the graphs of backbones and of whole models.

    Weights are random: none are read.

    Args:
        models: names of architectures, for the backbone alone, or paths of configs.
        seconds: spent on timing each size, about.
        folder: where the graphs lie meanwhile.

    Yields:
        What was found for each model at each of :data:`mmivit.export.parity.SIZES`.

    Raises:
        ExportError: a package is missing, or a graph differs from torch.
        LaunchError: there is no such config.
    """
    path = folder / 'graph.onnx'
    target: Target
    for model in models:
        if model in ARCHITECTURES:
            name, target = f'backbone {model}', BackboneTarget(scatter(IViT(model)).eval())
        else:
            cfg = read_config(model)
            name, target = Path(model).stem, find_target(scatter(build_model(cfg)), cfg)
        target.write(path)
        for pair in target.pairs(path):
            found = pair.compare()
            sides = dict(torch=pair.torch, onnx=pair.onnx)
            times = compare(sides, 'cpu', seconds)
            yield Timed(
                name, target.columns, found, *(times[side]['seconds'] for side in ('torch', 'onnx'))
            )


class Asked(NamedTuple):
    """A model that is asked for, with what belongs to it."""

    model: str  # name of an architecture, or path of a config
    checkpoint: str | None
    graphs: list[Path]


def models_asked(arguments: Iterable[str]) -> list[Asked]:
    """Each model with the checkpoint and the graphs that follow it.

    Raises:
        ExportError: there is no model before them, or a second checkpoint, or graphs without one.
    """
    found: list[Asked] = []
    for argument in arguments:
        suffix = Path(argument).suffix
        if suffix in ('.onnx', '.xml') and found and found[-1].checkpoint:
            found[-1].graphs.append(Path(argument))
        elif suffix == '.pth' and found and not found[-1].checkpoint and '.py' in found[-1].model:
            found[-1] = found[-1]._replace(checkpoint=argument)
        elif suffix == '.py' or argument in ARCHITECTURES:
            found.append(Asked(argument, None, []))
        else:
            raise ExportError(
                f'{argument}: expected {", ".join(ARCHITECTURES)}, or a config (.py), after it its '
                'checkpoint (.pth), after that its graphs (.onnx, .xml)'
            )
    return found


def scatter(model: nn.Module) -> nn.Module:
    """Move every parameter from its initial value, as training does, and give the model back.

    At the start interactions are the identity, scales one and biases zero, and whatever a graph
    did with them would look right.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model
