"""Modules as ONNX graphs with dynamic sizes."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from mmivit.errors import ExportError
from mmivit.models.attention import average_blocks
from mmivit.version import __version__

EXPORTED_SIZE = (2, 224, 288)  # what the exporter is shown: none of those a graph is checked with
OPSET = 18


class _BlockAverages(TorchFunctionMode):
    """Adaptive pooling by averaging matrices: the exporter fixes it to the sizes it was shown."""

    def __torch_function__(
        self,
        function: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
        if function is F.adaptive_avg_pool2d:
            function = _adaptive_avg_pool2d
        return function(*args, **(kwargs or {}))


def _adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    # None keeps a side.
    height, width = (bins or side for bins, side in zip(_pair(output_size), input.shape[2:]))
    return average_blocks(input.permute(0, 2, 3, 1), (height, width)).permute(0, 3, 1, 2)


def write_onnx(
    graph: nn.Module,
    path: Path,
    outputs: Sequence[str],
    channels: int = 3,
    metadata: dict[str, str] | None = None,
    batch: int | None = None,
) -> None:
    """Write a module as an ONNX graph with dynamic height and width.

    Args:
        graph: takes images (B, channels, H, W), gives a tensor or a tuple of them.
        path: where to, one file.
        outputs: names of what it gives; what it takes is named ``image``.
        channels: of the image.
        metadata: kept in the file's ``metadata_props``.
        batch: the only one that the graph takes; any if not given.

    Raises:
        ExportError: torch cannot export it.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    image = torch.rand(batch or EXPORTED_SIZE[0], channels, *EXPORTED_SIZE[1:])
    sides = {2: 'height', 3: 'width'} if batch else {0: 'batch', 2: 'height', 3: 'width'}
    with warnings.catch_warnings(), torch.no_grad(), _BlockAverages(), _as_in_torch():
        warnings.simplefilter('ignore')  # of the exporter's own making
        try:
            program = torch.onnx.export(
                graph,
                (image,),
                input_names=['image'],
                output_names=outputs,
                dynamic_shapes=(sides,),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ExportError(f'torch cannot export {type(graph).__name__}: {reason}') from error
    ClearMetadataAndDocStringPass()(program.model)  # stack traces with paths of this machine
    program.model.producer_name, program.model.producer_version = 'mmivit', __version__
    program.model.metadata_props.update(metadata or {})
    program.save(path, external_data=False)


def _as_in_torch() -> contextlib.AbstractContextManager:
    """Let mmdet compute as without an exporter; with one it asks for modules of mmdet 2."""
    return mock.patch.object(torch.onnx, 'is_in_onnx_export', return_value=False)
