"""What can be exported: a graph, what it takes and gives, and torch's own answer to compare with.

A further family of models is one more :class:`ModelTarget` in :data:`TARGETS`, a further family of
detectors' heads one more graph in :mod:`mmivit.export.detectors`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmivit.errors import ExportError
from mmivit.export.detectors import find_family, foreign_operators
from mmivit.export.features import FeatureGraph, SegmentorGraph
from mmivit.export.graphs import write_onnx
from mmivit.export.parity import COLUMNS, SIZES, pairs
from mmivit.export.parity_detections import DETECTION_COLUMNS, detection_pairs, pictures
from mmivit.export.recipe import content, recipe

Size = tuple[int, int, int]  # batch, height, width, pixels
MAPS = 'float32, batch x channels x height x width each, finest first'


class Target(ABC):
    """Something to export.

    Attributes:
        what: is exported, a phrase.
        graph: takes images (B, channels, H, W), gives a tensor or a tuple of them.
        channels: of the image.
        batch: the only one that the graph takes; None for any.
        columns: of a table of what :meth:`pairs` give.
        outputs: names of what the graph gives.
        takes: the image: type, layout, content.
        gives: the outputs: type, layout.
    """

    what: str
    graph: nn.Module
    channels: int
    batch: int | None = None
    columns: Sequence[str] = COLUMNS
    outputs: list[str]
    takes: str
    gives: str

    @abstractmethod
    def reference(self, images: Tensor) -> Sequence[Tensor]:
        """What the graph should give, as the model's own package computes it."""

    @property
    def description(self) -> dict[str, str]:
        """What the graph takes and gives, by name."""
        return {'image': self.takes, ', '.join(self.outputs): self.gives}

    @property
    def facts(self) -> dict[str, str]:
        """What a program that runs the graph has to know besides, by name."""
        return {}

    def write(self, path: Path) -> None:
        """Write the graph with its description.

        Raises:
            ExportError: torch cannot export it.
        """
        metadata = {**self.description, 'exported': self.what, **self.facts}
        write_onnx(self.graph, path, self.outputs, self.channels, metadata, self.batch)

    def pairs(self, path: Path, sizes: Sequence[Size] | None = None) -> Iterator[Any]:
        """A graph that was written and torch on the same images, at each size.

        Each pair has ``torch`` and ``onnx`` to be called, and ``compare()``, which raises
        ExportError where they differ and makes the cells of a row of :attr:`columns`.

        Args:
            path: of the graph.
            sizes: batch, height, width; of a detector the batch is 1 always. Those of
                :data:`mmivit.export.parity.SIZES` if not given.
        """
        return pairs(path, self.reference, self.channels, sizes or SIZES)


class BackboneTarget(Target):
    """A backbone by itself, whose input is normalised.

    Args:
        backbone: an IViT.
        channels: of its input.
    """

    def __init__(self, backbone: nn.Module, channels: int = 3) -> None:
        self.what = type(backbone).__name__
        self.graph, self.channels = backbone, channels
        self.outputs = _map_names(len(backbone.out_channels))
        self.takes = f'float32, batch x {channels} x height x width, normalised'
        self.gives = MAPS

    def reference(self, images: Tensor) -> Sequence[Tensor]:
        return self.graph(images)


class ModelTarget(Target):
    """What the models of mmdet and mmseg have in common: a data preprocessor, in the graph too.

    Args:
        model: built from the config.
        cfg: its config.
        meta: classes and palette of its checkpoint, if it has them.
    """

    task = 'features'

    def __init__(self, model: nn.Module, cfg: Config, meta: dict | None = None) -> None:
        self.model, self.cfg, self.meta = model, cfg, meta or {}
        self.options = cfg.model.get('data_preprocessor') or {}
        self.channels = cfg.model.backbone.get('in_channels', 3)
        self.takes = (
            f'float32, {self.batch or "batch"} x {self.channels} x height x width, '
            f'{content(cfg)}; normalised and padded inside'
        )

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """Whether a model is of this kind."""
        return hasattr(model, 'extract_feat') and hasattr(model, 'backbone')

    @property
    def facts(self) -> dict[str, str]:
        named = {key: json.dumps(self.meta.get(key) or []) for key in ('classes', 'palette')}
        return {'task': self.task, **named, **recipe(self.cfg)}

    @property
    def divisor(self) -> int:
        """The image is padded to multiples of it."""
        if 'pad_size_divisor' in self.options:  # mmdet's name for it
            return self.options['pad_size_divisor']
        test_cfg = self.options.get('test_cfg') or {}
        if set(test_cfg) - {'size_divisor'}:
            raise ExportError(
                f'data_preprocessor.test_cfg is {dict(test_cfg)}: only size_divisor can be '
                'exported, other padding is of one size'
            )
        return test_cfg.get('size_divisor') or 1


class SegmentorTarget(ModelTarget):
    """A segmentor of mmseg, whole."""

    task = 'segmentation'

    def __init__(self, model: nn.Module, cfg: Config, meta: dict | None = None) -> None:
        super().__init__(model, cfg, meta)
        self.graph = SegmentorGraph(model, self.options, self.channels, self.divisor)
        self.outputs = ['logits']
        self.what = f'{type(model).__name__}, whole, at the size of the image (no sliding windows)'
        self.gives = 'float32, batch x classes x height x width, before softmax'

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        return super().fits(model) and hasattr(model, 'encode_decode')

    @property
    def facts(self) -> dict[str, str]:
        head = self.model.decode_head
        own = {'align_corners': json.dumps(bool(self.model.align_corners))}
        if self.model.out_channels == 1:
            own['threshold'] = json.dumps(head.threshold)
        if self.model.test_cfg.get('mode') == 'slide':
            own['unprepared'] = "test_cfg.mode='slide'"
        return {**super().facts, **own}

    def reference(self, images: Tensor) -> Sequence[Tensor]:
        from mmseg.structures import SegDataSample

        height, width = images.shape[2:]
        samples = [SegDataSample(metainfo=dict(img_shape=(height, width))) for _ in images]
        data = dict(inputs=list(images), data_samples=samples)
        data = self.model.data_preprocessor(data, False)
        metas = [sample.metainfo for sample in data['data_samples']]
        return [self.model.encode_decode(data['inputs'], metas)[..., :height, :width]]


class DetectorTarget(ModelTarget):
    """A detector of mmdet, whole, of a family that :mod:`mmivit.export.detectors` knows.

    Raises:
        ExportError: it is of none, or has a part of its own.
    """

    task = 'detection'
    batch = 1
    columns = DETECTION_COLUMNS

    def __init__(self, model: nn.Module, cfg: Config, meta: dict | None = None) -> None:
        super().__init__(model, cfg, meta)
        family = find_family(model)
        self.graph = family(model, self.options, self.channels, self.divisor)
        self.masks = self.graph.with_masks
        self.outputs = ['boxes', 'scores', 'labels', *(['masks'] if self.masks else [])]
        self.what = f'{type(model).__name__}, whole, one image at a time'
        self.gives = 'float32 n x 4 (x1, y1, x2, y2, pixels of the input), float32 n, int64 n'
        stride = self.graph.mask_stride
        if self.masks and stride:
            self.gives += f', float32 n x h x w (logits of every {stride}th pixel, padded)'
        elif self.masks:
            self.gives += ', float32 n x m x m (probabilities in m x m cells of the box)'

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        return super().fits(model) and hasattr(model, 'add_pred_to_datasample')

    @property
    def facts(self) -> dict[str, str]:
        own = {'test_cfg': json.dumps(self.graph.test_cfg)}
        if self.graph.mask_stride:
            own['mask_stride'] = json.dumps(self.graph.mask_stride)
        return {**super().facts, **own}

    def reference(self, images: Tensor) -> Sequence[Tensor]:
        """Boxes, scores, labels and, of some, masks (n, H, W) bool, of one image."""
        from mmdet.structures import DetDataSample

        size = tuple(images.shape[2:])
        meta = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
        data = dict(inputs=list(images), data_samples=[DetDataSample(metainfo=meta)])
        data = self.model.data_preprocessor(data, False)
        (sample,) = self.model.predict(data['inputs'], data['data_samples'])
        found = sample.pred_instances
        # RTMDet-Ins leaves the padding with them.
        masks = [found.masks[:, : size[0], : size[1]]] if self.masks else []
        return [found.bboxes, found.scores, found.labels, *masks]

    def pairs(self, path: Path, sizes: Sequence[Size] | None = None) -> Iterator[Any]:
        images = pictures(self.cfg, self.channels, sizes or SIZES)
        return detection_pairs(path, self.reference, images)


class FeatureTarget(ModelTarget):
    """The backbone of a model, with the data preprocessor before it."""

    def __init__(self, model: nn.Module, cfg: Config, meta: dict | None = None) -> None:
        super().__init__(model, cfg, meta)
        self.graph = FeatureGraph(model, self.options, self.channels, self.divisor)
        with torch.no_grad():
            maps = self.graph(torch.zeros(1, self.channels, 64, 64))
        self.outputs = _map_names(len(maps))
        self.what = f'{type(model.backbone).__name__}, the backbone of {type(model).__name__}'
        self.gives = MAPS

    def reference(self, images: Tensor) -> Sequence[Tensor]:
        inputs = self.model.data_preprocessor(dict(inputs=list(images)), False)['inputs']
        return self.model.backbone(inputs)


# The first that fits is taken: one for fewer models stands before one for more.
TARGETS: tuple[type[ModelTarget], ...] = (SegmentorTarget, DetectorTarget)


def find_target(
    model: nn.Module, cfg: Config, meta: dict | None = None, backbone: bool = False
) -> ModelTarget:
    """What can be exported of a config's model: all of it, or its ``backbone`` alone.

    Raises:
        ExportError: it cannot be exported.
    """
    for target in (FeatureTarget,) if backbone else TARGETS:
        if target.fits(model):
            for obstacle in foreign_operators(model.backbone if backbone else model):
                raise ExportError(f'{type(model).__name__} cannot be exported: {obstacle}')
            return target(model, cfg, meta)
    raise ExportError(f'{type(model).__name__} has no backbone of its own to be exported')


def _map_names(count: int) -> list[str]:
    return [f'map{i}' for i in range(count)]
