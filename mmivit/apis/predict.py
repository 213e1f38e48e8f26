"""Predictions for images and folders, written as pictures, records and label maps."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import mmcv
import numpy as np
from tqdm import tqdm

from mmivit.apis.config import (
    check_channels,
    check_scope,
    read_config,
    set_test_data,
    tested_dataset,
)
from mmivit.apis.images import IMAGE_SUFFIXES, find_images, read_image
from mmivit.apis.inferencers import Detector, Segmentor
from mmivit.datasets.images import darkness
from mmivit.datasets.loaders import decodes_as_stock
from mmivit.datasets.report import DataReport
from mmivit.utils.files import RefusedFile, write_whole
from mmivit.utils.text import printable

MAX_JPEG = 65_500  # pixels a side, in OpenCV


@dataclass
class PredictReport:
    """Which images were predicted, which files could not be used and why, and what to doubt."""

    written: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    doubts: DataReport = field(default_factory=lambda: DataReport('predicted'))


def predict(
    config: str,
    checkpoint: str,
    inputs: Iterable[str | Path],
    out: str | Path,
    device: str | None = None,
    score_thr: float = 0.3,
    force: bool = False,
    cfg_options: dict | None = None,
) -> PredictReport:
    """Predict on images and write ``out/pictures/NAME.jpg`` and ``out/predictions/NAME.json``.

    For a segmentor also ``out/labels/NAME.png``, the label map with its palette. A file that
    cannot be read or predicted is reported and the others go on.

    Args:
        config: the model's config.
        checkpoint: its weights.
        inputs: images and folders (searched recursively), loaded as the config's test pipeline
            does; files of its own format are found by the data set's ``img_suffix``.
        out: folder to write.
        device: 'cpu', 'cuda:0' and so on; the best available if not given.
        score_thr: detections below this score are left out; nothing to a segmentor.
        force: replace pictures and predictions written earlier.
        cfg_options: what to override in the config, by dotted key.

    Raises:
        FileNotFoundError: an input is missing.
        LaunchError: the config or the checkpoint is missing, or the config cannot be read or an
            option does not fit it.
        FileExistsError: a file to be written exists and ``force`` is off.
        PermissionError: a symbolic link in ``out`` leads out of it.
        OSError: the disk is full.
        CheckpointError: the checkpoint is unsafe, unreadable, or of something else.
    """
    cfg = read_config(config, cfg_options=cfg_options)
    check_channels(cfg)
    segments = check_scope(cfg) == 'mmseg'
    set_test_data(cfg)
    own = (tested_dataset(cfg).get('img_suffix') or IMAGE_SUFFIXES[0]).lower()
    suffixes = IMAGE_SUFFIXES if own.endswith(IMAGE_SUFFIXES) else (*IMAGE_SUFFIXES, own)
    images = find_images(inputs, Path(out), suffixes)
    targets = [_targets(Path(out), name, segments) for _, name in images]
    if len(set(targets)) < len(targets):
        twice = next(t for i, t in enumerate(targets) if t in targets[:i])
        raise FileExistsError(f'two inputs would both be written to {twice[0]}')
    _check_inside(Path(out), targets)
    existing = [path for paths in targets for path in paths if os.path.lexists(path)]
    if existing and not force:
        raise FileExistsError(
            f'{printable(existing[0])} exists ({len(existing)} such files); '
            'name another --out, or replace them with --force'
        )
    predictor: Detector | Segmentor
    if segments:
        predictor = Segmentor(cfg, checkpoint, device)
    else:
        predictor = Detector(cfg, checkpoint, device, score_thr)
    report = PredictReport()
    for (path, _), paths in zip(tqdm(images, unit='image'), targets):
        try:
            sample = read_image(path, predictor.pipeline)
            picture, record, *label_map = predictor(sample)
            height, width = sample['img'].shape[:2]
            record = dict(image=str(path), width=width, height=height, **record)
            contents = [_jpeg(picture), json.dumps(record, indent=1).encode(), *label_map]
            for target, content in zip(paths, contents):
                write_whole(target, content)
        except (RefusedFile, ValueError, OSError, RuntimeError, cv2.error) as error:
            if getattr(error, 'errno', None) == errno.ENOSPC:
                raise
            report.failed[path] = (str(error).strip() or type(error).__name__).splitlines()[0]
            continue
        report.written.append(path)
        stock = decodes_as_stock(predictor.pipeline.loader)
        dark = darkness(path, sample['img']) if stock else None
        report.doubts.add([dark] if dark else [])
    return report


def _targets(out: Path, name: Path, segments: bool) -> tuple[Path, ...]:
    """What is written for an image; its own suffix stays, so that a.png and a.jpg differ."""
    paths = (out / 'pictures' / f'{name}.jpg', out / 'predictions' / f'{name}.json')
    return (*paths, out / 'labels' / f'{name}.png') if segments else paths


def _check_inside(out: Path, targets: Iterable[tuple[Path, ...]]) -> None:
    """Refuse to write through a link that someone left in ``out``."""
    root = out.resolve()
    for folder in {path.parent for paths in targets for path in paths}:
        if not folder.resolve().is_relative_to(root):
            raise PermissionError(f'{folder} is a link out of {out}, where all files belong')


def _jpeg(picture: np.ndarray) -> bytes:
    if max(picture.shape[:2]) > MAX_JPEG:
        raise ValueError(f'a JPEG has {MAX_JPEG} pixels a side at most, not {picture.shape[:2]}')
    return cv2.imencode('.jpg', mmcv.rgb2bgr(picture))[1].tobytes()
