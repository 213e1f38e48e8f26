"""A detector's graph in onnxruntime beside mmdet's own predictions on pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor
from tqdm import tqdm

from mmivit.apis.config import tested_dataset
from mmivit.apis.images import IMAGE_SUFFIXES
from mmivit.datasets.loaders import ImagePipeline
from mmivit.datasets.scenes import draw_scene
from mmivit.errors import ExportError
from mmivit.export.parity import open_beside_torch, run_graph
from mmivit.export.runtime import lay_masks

TOLERANCE = 1e-3  # of scores, and of boxes in units of the picture's longer side
LEAST_MATCHED = 0.98  # of the detections; nearly equal boxes or scores may be chosen otherwise
LEAST_IOU = 0.99  # of masks, on average
DETECTION_COLUMNS = (
    'model',
    'height x width',
    'detections in mmdet, in the graph, the same',
    'largest difference of boxes, pixels',
    'of scores',
    'mean IoU of masks',
)


class DetectionParity(NamedTuple):
    """How a detector's graph compares with mmdet on one picture."""

    height: int  # pixels
    width: int
    expected: int  # detections of mmdet
    found: int  # of the graph
    matched: int  # of the same class, place and score, to the tolerance
    boxes: float  # largest difference of those, pixels
    scores: float
    iou: float | None  # of their masks, on average

    def cells(self, model: str) -> list[str]:
        """A row of a table of :data:`DETECTION_COLUMNS`."""
        return [
            model,
            f'{self.height} x {self.width}',
            f'{self.expected}, {self.found}, {self.matched}',
            f'{self.boxes:.1e}',
            f'{self.scores:.1e}',
            '-' if self.iou is None else f'{self.iou:.4f}',
        ]

    @staticmethod
    def summary(parities: Sequence[DetectionParity]) -> str:
        """A phrase for all sizes."""
        most = sum(max(parity.expected, parity.found) for parity in parities)
        same = sum(parity.matched for parity in parities)
        boxes, scores = (max(getattr(p, x) for p in parities) for x in ('boxes', 'scores'))
        ious = [parity.iou for parity in parities if parity.iou is not None]
        masks = f', masks IoU {min(ious):.4f}' if ious else ''
        return f'{same} of {most}; boxes {boxes:.1e} px, scores {scores:.1e}{masks}'

    def check(self) -> None:
        """Raise ExportError if they differ."""
        fewest = LEAST_MATCHED * max(self.expected, self.found)
        if self.matched < fewest or (self.iou is not None and self.iou < LEAST_IOU):
            masks = '' if self.iou is None else f', and their masks overlap by {self.iou:.3f}'
            raise ExportError(
                f'the graph differs from mmdet at {self.height} x {self.width}: of {self.expected} '
                f'detections and its {self.found} only {self.matched} are the same{masks}; nothing '
                'was written'
            )


class DetectionPair(NamedTuple):
    """A graph and mmdet on the same picture (height, width), each to be called."""

    size: tuple[int, int]
    torch: Callable[[], Sequence[Tensor]]
    onnx: Callable[[], Sequence[np.ndarray]]

    def measure(self) -> DetectionParity:
        """Run both.

        Raises:
            ExportError: the graph's engine fails.
        """
        found = run_graph(self.onnx, self.size)
        return compare_detections([y.numpy() for y in self.torch()], found, *self.size)

    def compare(self) -> DetectionParity:
        """Run both, and raise ExportError also if they differ."""
        parity = self.measure()
        parity.check()
        return parity


def detection_pairs(
    path: Path,
    reference: Callable[[Tensor], Sequence[Tensor]],
    images: Iterable[np.ndarray],
) -> Iterator[DetectionPair]:
    """A graph in onnxruntime and mmdet on each picture.

    Args:
        path: the graph.
        reference: mmdet's boxes, scores, labels and, of some, masks (n, H, W) of an image
            (1, C, H, W).
        images: (H, W, C).
    """
    graph = open_beside_torch(path)
    for image in tqdm([*images], desc='checking the graph', unit='size'):
        batch = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))
        yield DetectionPair(
            (image.shape[0], image.shape[1]),
            torch.no_grad()(partial(reference, batch)),
            partial(_detect, *graph, batch.numpy()),
        )


def _detect(run: Callable, meta: dict[str, str], image: np.ndarray) -> list[np.ndarray]:
    """What mmdet gives: masks, if there are any, are laid over the picture, (n, H, W) bool."""
    height, width = image.shape[2:]
    boxes, scores, labels, *masks = run(image)
    laid = [
        np.array([*lay_masks(part, boxes, height, width, meta)], bool).reshape(-1, height, width)
        for part in masks
    ]
    return [boxes, scores, labels, *laid]


def compare_detections(
    expected: Sequence[np.ndarray], found: Sequence[np.ndarray], height: int, width: int
) -> DetectionParity:
    """Find the detections of one side among those of the other.

    Args:
        expected: boxes (n, 4), scores (n,), labels (n,) and, of some, masks (n, height, width)
            bool.
        found: the same.
        height: of the picture, pixels.
        width: of the picture.
    """
    side = max(height, width)
    boxes = np.abs(expected[0][:, None] - found[0][None]).max(-1)  # (n, m), pixels
    scores = np.abs(expected[1][:, None] - found[1][None])
    other = expected[2][:, None] != found[2][None]
    distance = np.maximum(boxes / side, scores) + np.where(other, np.inf, 0)
    pairs = []
    for i in range(len(distance)):
        if distance.shape[1] and distance[i].min() <= TOLERANCE:
            j = int(distance[i].argmin())
            pairs.append((i, j))
            distance[:, j] = np.inf
    ious = []
    for i, j in pairs if len(expected) > 3 else ():
        one, two = expected[3][i], found[3][j]
        ious.append(float((one & two).sum() / (one | two).sum()) if one.any() else 1.0)
    return DetectionParity(
        height,
        width,
        len(expected[0]),
        len(found[0]),
        len(pairs),
        max((float(boxes[pair]) for pair in pairs), default=0.0),
        max((float(scores[pair]) for pair in pairs), default=0.0),
        float(np.mean(ious)) if ious else None,
    )


def pictures(
    cfg: Config, channels: int, sizes: Sequence[tuple[int, int, int]]
) -> Iterator[np.ndarray]:
    """A picture (H, W, channels) for each size: of the config's test data, else drawn ones."""
    dataset = tested_dataset(cfg)
    prefix = dataset.get('data_prefix') or {}
    inside = prefix.get('img') or prefix.get('img_path')
    folder = Path(dataset.get('data_root') or '.', inside or '')
    found = []
    if inside and folder.is_dir():
        found = sorted(p for p in folder.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES)
    pipeline = ImagePipeline(dataset.get('pipeline') or [], cfg.default_scope) if found else None
    rng = np.random.default_rng(0)
    for i, (_, height, width) in enumerate(sizes):
        sample = pipeline.load(found[i % len(found)]) if pipeline else None
        image = sample['img'] if sample else draw_scene(rng, 256)[0]
        resized = np.atleast_3d(cv2.resize(image, (width, height)))
        yield resized if resized.shape[2] == channels else resized[..., :1].repeat(channels, 2)
