"""From a config and a checkpoint to a graph that was compared with torch."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.utils import digit_version

from mmivit.apis.config import check_channels, read_config
from mmivit.apis.inferencers import names_and_colours
from mmivit.apis.models import load_model
from mmivit.errors import ExportError
from mmivit.export.targets import find_target
from mmivit.utils.files import check_absent, whole

PACKAGES = ('onnx', 'onnxscript', 'onnxruntime', 'torchvision')


class Export(NamedTuple):
    """What was exported: a phrase, what the graph takes and gives, and how it was checked."""

    what: str
    description: dict[str, str]
    columns: Sequence[str]
    parities: list[Any]  # each makes the cells of a row of the columns


def export(
    config: str,
    checkpoint: str,
    out: str | Path,
    force: bool = False,
    cfg_options: dict | None = None,
    backbone: bool = False,
) -> Export:
    """Write a detector or a segmentor as an ONNX graph.

    Height and width are dynamic, and the batch but of detectors. Normalisation and padding are part
    of the graph. It is compared with torch at :data:`mmivit.export.parity.SIZES` before it gets its
    name.

    Args:
        config: path of an mmdet or mmseg config.
        checkpoint: path of the weights.
        out: the ``.onnx`` file to write.
        force: replace an existing file.
        cfg_options: what to override in the config, by dotted key.
        backbone: export the backbone alone.

    Raises:
        ExportError: a package is missing, the model is none that can be exported, or the graph
            differs from torch; nothing is written then.
        LaunchError, CheckpointError: the config or the checkpoint is missing or does not fit.
        FileExistsError: the file exists and ``force`` is off.
    """
    check_packages()
    out = Path(out)
    if out.suffix != '.onnx':
        raise ExportError(f'{out}: the graph is written to a file that ends in .onnx')
    check_absent(out, force)
    cfg = read_config(config, cfg_options=cfg_options)
    check_channels(cfg)
    model, meta = load_model(cfg, checkpoint)
    target = find_target(model, cfg, names_and_colours(cfg, meta), backbone)
    print_log('torch makes the graph, some minutes', logger='current')
    with whole(out) as partial_out:
        target.write(partial_out)
        parities = [pair.compare() for pair in target.pairs(partial_out)]
    return Export(target.what, target.description, target.columns, parities)


def check_packages() -> None:
    """Raise ExportError if a package that exporting needs is missing or too old."""
    missing = []
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ExportError(
            f'{", ".join(missing)} cannot be imported: python -m pip install {" ".join(PACKAGES)}'
        )
    if digit_version(torch.__version__) < digit_version('2.5.0'):
        raise ExportError(
            f'torch {torch.__version__} has no exporter for dynamic sizes; 2.5 or newer has'
        )
