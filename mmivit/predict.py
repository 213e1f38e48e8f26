"""Predictions for images and folders, through mmdet's own inferencer and visualiser."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from tqdm import tqdm

from mmivit.checkpoint import check_readable

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm')
LEGIBLE = 480  # pixels; smaller images are enlarged for drawing, so that labels can be read


@dataclass
class PredictReport:
    """What was written, and which files could not be used and why."""

    written: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


def find_images(inputs: Iterable[str | Path]) -> list[tuple[Path, Path]]:
    """The images of files and folders, each with its name relative to what was asked for.

    Raises:
        FileNotFoundError: an input does not exist, or a folder holds no image.
    """
    found = []
    for entry in map(Path, inputs):
        if entry.is_dir():
            images = sorted(p for p in entry.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES)
            if not images:
                raise FileNotFoundError(
                    f'{entry} holds no image; looked for {", ".join(IMAGE_SUFFIXES)}'
                )
            found += [(path, path.relative_to(entry)) for path in images]
        elif entry.exists():
            found.append((entry, Path(entry.name)))
        else:
            raise FileNotFoundError(f'no file or folder {entry}, seen from {os.getcwd()}')
    return found


def predict(
    config: str,
    checkpoint: str,
    inputs: Iterable[str | Path],
    out: str | Path,
    device: str | None = None,
    score_thr: float = 0.3,
    force: bool = False,
) -> PredictReport:
    """Detect on images and write ``out/pictures/NAME.jpg`` and ``out/predictions/NAME.json``.

    A file that cannot be read or predicted is reported and the others go on.

    Args:
        config: the model's config.
        checkpoint: its weights.
        inputs: images and folders (searched recursively).
        out: folder to write.
        device: 'cpu', 'cuda:0' and so on; the best available if not given.
        score_thr: detections below this score are left out.
        force: replace pictures and predictions written earlier.

    Raises:
        FileNotFoundError: an input, the config or the checkpoint is missing.
        FileExistsError: a file to be written exists and ``force`` is off.
        CheckpointError: the checkpoint is unsafe, unreadable, or of something else.
    """
    for path in (config, checkpoint):
        if not Path(path).is_file():
            raise FileNotFoundError(f'no file {path}, seen from {os.getcwd()}')
    images = find_images(inputs)
    targets = [_targets(Path(out), name) for _, name in images]
    if len(set(targets)) < len(targets):
        twice = next(t for i, t in enumerate(targets) if t in targets[:i])
        raise FileExistsError(f'two inputs would both be written to {twice[0]}')
    existing = [path for pair in targets for path in pair if path.exists()]
    if existing and not force:
        raise FileExistsError(
            f'{existing[0]} exists ({len(existing)} such files); '
            'name another --out, or replace them with --force'
        )
    check_readable(checkpoint)
    detector = _Detector(config, checkpoint, device, score_thr)
    report = PredictReport()
    for (path, _), (picture, prediction) in zip(tqdm(images, unit='image'), targets):
        try:
            image = mmcv.imread(str(path))
            if image is None:
                raise ValueError('not an image that can be read')
            drawn, record = detector(image)
        except (ValueError, OSError, RuntimeError, cv2.error) as error:
            report.failed[path] = str(error).strip().splitlines()[0]
            continue
        height, width = image.shape[:2]
        record = dict(image=str(path), width=width, height=height, **record)
        _write(prediction, json.dumps(record, indent=1).encode())
        _write(picture, cv2.imencode('.jpg', mmcv.rgb2bgr(drawn))[1].tobytes())
        report.written += [picture, prediction]
    return report


class _Detector:
    """mmdet's inferencer: BGR image in, RGB picture and plain record out."""

    def __init__(self, config: str, checkpoint: str, device: str | None, score_thr: float) -> None:
        from mmdet.apis import DetInferencer

        cfg = Config.fromfile(config)
        self.inferencer = DetInferencer(cfg, checkpoint, device=device, show_progress=False)
        self.classes = self.inferencer.model.dataset_meta['classes']
        self.score_thr = score_thr

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, dict]:
        sample = self.inferencer(image, return_datasamples=True)['predictions'][0]
        sample.pred_instances = sample.pred_instances[
            sample.pred_instances.scores >= self.score_thr
        ]
        record = self.inferencer.pred2dict(sample)  # bboxes x1, y1, x2, y2; masks as COCO RLE
        detections = []
        for i, label in enumerate(record['labels']):
            detection = dict(
                label=label,
                name=self.classes[label],
                score=record['scores'][i],
                bbox=record['bboxes'][i],
            )
            if 'masks' in record:
                detection['mask'] = record['masks'][i]
            detections.append(detection)
        return self._draw(image, sample), dict(detections=detections)

    def _draw(self, image: np.ndarray, sample) -> np.ndarray:
        factor = max(1, -(-LEGIBLE // min(image.shape[:2])))
        instances = sample.pred_instances
        if factor > 1:
            image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
            instances.bboxes = instances.bboxes * factor
            if 'masks' in instances:
                instances.masks = torch.as_tensor(instances.masks)
                instances.masks = instances.masks.repeat_interleave(factor, 1)
                instances.masks = instances.masks.repeat_interleave(factor, 2)
        visualizer = self.inferencer.visualizer
        visualizer.add_datasample(
            'prediction', mmcv.bgr2rgb(image), sample, draw_gt=False, pred_score_thr=0
        )
        return visualizer.get_image()


def _targets(out: Path, name: Path) -> tuple[Path, Path]:
    """Picture and prediction of an image; its suffix stays, so that a.png and a.jpg differ."""
    return out / 'pictures' / f'{name}.jpg', out / 'predictions' / f'{name}.json'


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.partial')
    partial.write_bytes(content)
    partial.replace(path)
