"""Trained models and their graphs on a config's held-out set: scores and times, side by side."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import nn

from mmivit.apis.config import check_paths, read_config
from mmivit.apis.inferencers import names_and_colours
from mmivit.apis.models import load_model
from mmivit.apis.runner import build_runner
from mmivit.errors import ExportError
from mmivit.export import runtime
from mmivit.export.targets import ModelTarget, find_target
from mmivit.utils.timing import compare

COLUMNS = ('model', 'runs in', 'MB', 'the same as in torch, at five sizes', 'held-out set', 'ms')
SCORES = {'coco/bbox_mAP': 'box AP', 'coco/segm_mAP': 'mask AP', 'mIoU': 'mIoU'}
ENGINES = {'.onnx': 'onnxruntime', '.xml': 'OpenVINO'}


class Judged(NamedTuple):
    """A model in torch, or one of its graphs, or why there is none."""

    model: str
    runs_in: str
    size: int | None = None  # bytes, of a graph
    parity: str = '-'
    scores: dict[str, float] | None = None  # percent
    seconds: float | None = None  # median of an image

    @property
    def columns(self) -> tuple[str, ...]:
        """Of its table."""
        return COLUMNS

    def cells(self) -> list[str]:
        """A row of a table of :data:`COLUMNS`."""
        scores = (self.scores or {}).items()
        return [
            self.model,
            self.runs_in,
            '-' if self.size is None else f'{self.size / 1e6:.1f}',
            self.parity,
            ', '.join(f'{name} {score:.1f}' for name, score in scores) or '-',
            '-' if self.seconds is None else f'{1e3 * self.seconds:.1f}',
        ]


class GraphModel(nn.Module):
    """A graph in the place of a model that is tested: files in, as a device reads them.

    Args:
        graph: of a detector or a segmentor.
    """

    def __init__(self, graph: runtime.Graph) -> None:
        super().__init__()
        self.graph = graph

    def test_step(self, data: dict) -> list[BaseDataElement]:
        """The samples of a batch with predictions where mmdet or mmseg puts them."""
        for sample in data['data_samples']:
            image = runtime.read_image(Path(sample.img_path), self.graph.meta['colors'])
            if self.graph.task == 'segmentation':
                labels = runtime.find_labels(self.graph, image)
                sample.pred_sem_seg = PixelData(data=torch.from_numpy(labels)[None].long())
            else:
                sample.pred_instances = self._instances(image)
        return data['data_samples']

    def _instances(self, image: np.ndarray) -> InstanceData:
        detections, _ = runtime.find_objects(self.graph, image, 0)
        found = InstanceData(
            bboxes=torch.tensor([x['bbox'] for x in detections]).reshape(-1, 4),
            scores=torch.tensor([x['score'] for x in detections]),
            labels=torch.tensor([x['label'] for x in detections], dtype=torch.int64),
        )
        if 'mask_thr_binary' in json.loads(self.graph.meta['test_cfg']):
            found.masks = [x['mask'] for x in detections]
        return found


class HeldOutSet:
    """A config's test data and its evaluators, by MMEngine's Runner on the CPU.

    Args:
        cfg: of mmdet or mmseg.
        folder: for MMEngine's log.
    """

    def __init__(self, cfg: Config, folder: Path) -> None:
        cfg = copy.deepcopy(cfg)
        cfg.merge_from_dict(dict(work_dir=str(folder), log_level='ERROR'))
        # One at a time: images of a batch are padded for each other.
        cfg.test_dataloader.update(batch_size=1, num_workers=0)
        self.runner = build_runner(cfg)
        image = self.runner.test_loop.dataloader.dataset[0]['inputs']
        self.size = 1, *image.shape[1:]  # of the first, prepared: batch, height, width

    def score(self, model: nn.Module) -> dict[str, float]:
        """What the evaluators say of a model; in percent what :data:`SCORES` knows, or all."""
        self.runner.model = model
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools' own table
            found = self.runner.test()
        known = {name: key for key, name in SCORES.items() if key in found}
        return {
            name: found[key] * (100 if key.startswith('coco/') else 1)
            for name, key in known.items()
        } or found


def judge(
    config: str, checkpoint: str, graphs: Sequence[Path], folder: Path, seconds: float
) -> Iterator[Judged]:
    """A trained model in torch and its graphs: what they find, how well, in which time.

    Scores are of all of the config's test data by its own evaluators; a graph reads the files by
    :mod:`mmivit.export.runtime`. Times are of the first of these images, prepared, until its boxes
    and masks or its logits are there, all sides in turn, on the CPU with as many threads each as
    torch has.

    Args:
        config: path of an mmdet or mmseg config.
        checkpoint: its weights.
        graphs: ``.onnx`` or ``.xml`` files made of them; if there are none, a graph is exported,
            and converted for OpenVINO where that is installed.
        folder: for what is written meanwhile.
        seconds: spent on timing, about.

    Yields:
        The model in torch, then each graph; one alone that says why, if it cannot be exported.

    Raises:
        ExportError: a graph's engine is missing or fails.
        GraphError: a graph is none of tools/export.py.
        LaunchError, CheckpointError: config, data or checkpoint is missing or does not fit.
    """
    cfg, name = read_config(config), Path(config).stem
    check_paths(cfg, ('test',))
    model, meta = load_model(cfg, checkpoint)
    try:
        target = find_target(model, cfg, names_and_colours(cfg, meta))
        named = bool(graphs)
        graphs = graphs or _exported(target, folder / f'{name}.onnx')
    except ExportError as error:
        yield Judged(name, f'refused: {error}')
        return
    opened = {path: runtime.Graph(path, torch.get_num_threads()) for path in graphs}
    held_out = HeldOutSet(cfg, folder)
    sides: dict[str, Callable] = {}
    for path in graphs:
        (pair,) = target.pairs(path, [held_out.size])
        sides |= {'torch': pair.torch, str(path): pair.onnx}
    times = {side: found['seconds'] for side, found in compare(sides, 'cpu', seconds).items()}
    yield Judged(name, 'torch', scores=held_out.score(model), seconds=times['torch'])
    for path, graph in opened.items():
        parities = [pair.measure() for pair in target.pairs(path)]
        yield Judged(
            name,
            ENGINES[path.suffix] + (f', {path.name}' if named else ''),
            sum(part.stat().st_size for part in _files(path)),
            type(parities[0]).summary(parities),
            held_out.score(GraphModel(graph)),
            times[str(path)],
        )


def _files(path: Path) -> list[Path]:
    """Those of a graph: OpenVINO's weights are in one of their own."""
    return [path, path.with_suffix('.bin')] if path.suffix == '.xml' else [path]


def _exported(target: ModelTarget, path: Path) -> list[Path]:
    """The graph of a model for each engine that is installed."""
    target.write(path)
    if not importlib.util.find_spec('openvino'):
        return [path]
    import openvino

    converted = path.with_suffix('.xml')
    openvino.save_model(openvino.Core().read_model(path), converted, compress_to_fp16=False)
    return [path, converted]
