"""One process's part of predict.py: files in; pictures, records, label maps and outcomes out."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import mmcv
import numpy as np
from mmengine.config import Config
from tqdm import tqdm

from mmivit.apis.batches import ahead, batches
from mmivit.apis.config import check_channels, check_scope, read_config, set_test_data
from mmivit.apis.images import read_image
from mmivit.apis.inferencers import Detector, Prediction, Prepared, Segmentor
from mmivit.apis.videos import Video, as_loaded, written_video
from mmivit.datasets.images import darkness
from mmivit.datasets.loaders import decodes_as_stock
from mmivit.datasets.report import Finding, first_line
from mmivit.utils.files import RefusedFile, write_whole
from mmivit.utils.text import printable

MAX_JPEG = 65_500  # pixels a side, in OpenCV
FAILURES = (RefusedFile, ValueError, OSError, RuntimeError, cv2.error)  # of one file, not of all


@dataclass(frozen=True)
class Settings:
    """What a process needs to know; see :func:`mmivit.apis.predict.predict`."""

    config: str
    checkpoint: str
    device: str | None = None
    score_thr: float = 0.3
    cfg_options: dict | None = None
    batch_size: int = 1
    opacity: float | None = None


class Task(NamedTuple):
    """A file, and what is written for it."""

    path: Path
    targets: tuple[Path, ...]
    is_video: bool


class Outcome(NamedTuple):
    """What became of a file; a failure in one line."""

    path: Path
    failure: str = ''
    doubt: Finding | None = None
    frames: int = 0
    empty: bool = False


class Loaded(NamedTuple):
    """An image that was read, or why it was not."""

    task: Task
    image: Prepared | None = None
    doubt: Finding | None = None
    failure: str = ''


def prepared_config(settings: Settings) -> Config:
    """The config as it is predicted with.

    Raises:
        LaunchError: it is missing, cannot be read, or is no detector's or segmentor's.
    """
    cfg = read_config(settings.config, cfg_options=settings.cfg_options)
    check_channels(cfg)
    check_scope(cfg)
    set_test_data(cfg)
    return cfg


def build_predictor(
    settings: Settings, cfg: Config, device: str | None = None
) -> Detector | Segmentor:
    """The model with its weights, on the device that the settings name, else on the one given.

    Raises:
        LaunchError, CheckpointError: as in :func:`mmivit.apis.inferencers.load_inferencer`.
    """
    device = settings.device or device
    if check_scope(cfg) == 'mmseg':
        return Segmentor(cfg, settings.checkpoint, device, settings.opacity)
    return Detector(cfg, settings.checkpoint, device, settings.score_thr, settings.opacity)


def find_outcomes(
    predictor: Detector | Segmentor, tasks: list[Task], batch_size: int, shown: bool = False
) -> Iterator[Outcome]:
    """Predict on the images, then on one video after another.

    Args:
        predictor: the model.
        tasks: the files.
        batch_size: images at once.
        shown: whether the frames of videos have a bar.
    """
    images = (_load(task, predictor) for task in tasks if not task.is_video)
    for batch in batches(ahead(images, batch_size + 1), batch_size, _shape):
        if batch[0].image is None:
            yield from (Outcome(each.task.path, each.failure) for each in batch)
            continue
        for loaded, prediction in _predictions(predictor, batch):
            failure, empty = prediction, False
            if isinstance(prediction, Prediction):
                failure = _attempt(_write, loaded.task, loaded.image, prediction)[1]
                empty = _is_empty([prediction.record])
            yield Outcome(loaded.task.path, str(failure), loaded.doubt, empty=empty)
    for task in tasks:
        if task.is_video:
            outcome, failure = _attempt(_predict_video, predictor, task, batch_size, shown)
            yield outcome or Outcome(task.path, failure)


def _attempt(function: Callable, *args: object) -> tuple:
    """What a function returns, and no failure; or None and what failed, in a line."""
    try:
        return function(*args), ''
    except FAILURES as error:
        if getattr(error, 'errno', None) == errno.ENOSPC:
            raise
        return None, first_line(error)


def _shape(loaded: Loaded) -> tuple | None:
    return loaded.image.shape if loaded.image else None


def _load(task: Task, predictor: Detector | Segmentor) -> Loaded:
    image, failure = _attempt(_read, task.path, predictor)
    return Loaded(task, *image) if image else Loaded(task, failure=failure)


def _read(path: Path, predictor: Detector | Segmentor) -> tuple[Prepared, Finding | None]:
    pipeline = predictor.pipeline
    sample = read_image(path, pipeline)
    dark = darkness(path, sample['img']) if decodes_as_stock(pipeline.loader) else None
    return Prepared(sample, pipeline(sample)), dark


def _predictions(
    predictor: Detector | Segmentor, batch: list[Loaded]
) -> Iterator[tuple[Loaded, Prediction | str]]:
    """The prediction of each, or what failed; a batch that fails is tried image by image."""
    predictions, failure = _attempt(predictor, [loaded.image for loaded in batch])
    if failure and len(batch) > 1:
        for loaded in batch:
            yield from _predictions(predictor, [loaded])
    else:
        yield from zip(batch, [failure] if failure else predictions)


def _write(task: Task, image: Prepared, prediction: Prediction) -> None:
    height, width = image.sample['img'].shape[:2]
    record = dict(image=str(task.path), width=width, height=height, **prediction.record)
    contents = [_jpeg(prediction.picture), _json(record), prediction.labels]
    for target, content in zip(task.targets, contents):
        if content is not None:
            write_whole(target, content)


def _predict_video(
    predictor: Detector | Segmentor, task: Task, batch_size: int, shown: bool
) -> Outcome:
    """Predict on all frames of a video, and write it.

    Raises:
        RefusedFile, ValueError, OSError, RuntimeError: what is wrong with the file or a frame.
    """
    video = Video(task.path)
    picture_path, record_path, video_path, *labels_path = task.targets

    def prepared() -> Iterator[Prepared]:
        for frame in video:
            sample = as_loaded(frame, predictor.pipeline)
            yield Prepared(sample, predictor.pipeline(sample))

    records: list[dict] = []
    picture = None
    bar = tqdm(
        total=video.announced or None, unit='frame', desc=printable(task.path.name), leave=False,
        disable=not shown,
    )  # fmt: skip
    with bar, written_video(video_path, video.rate) as writer:
        frames = ahead(prepared(), batch_size + 1)
        for batch in batches(frames, batch_size, lambda image: image.shape):
            for prediction in predictor(batch, steady=True):
                for path in labels_path:
                    assert prediction.labels is not None
                    write_whole(path.with_name(f'{len(records):06d}.png'), prediction.labels)
                if len(records) <= video.announced // 2:  # that of the middle stands for all
                    picture = prediction.picture
                writer.write(prediction.picture)
                records.append(prediction.record)
                bar.update()
        if picture is None:
            raise RefusedFile('a video without a frame that can be decoded')
    width, height = video.size
    record = dict(video=str(task.path), width=width, height=height, rate=video.rate, frames=records)
    write_whole(picture_path, _jpeg(picture))
    write_whole(record_path, _json(record))
    for path in labels_path:  # of a longer video before
        for old in path.parent.iterdir():
            if re.fullmatch(r'\d{6,}\.png', old.name) and int(old.stem) >= len(records):
                old.unlink()
    doubt = None
    if len(records) < video.announced:
        where = f'{task.path}: {len(records)} of {video.announced}'
        doubt = Finding('videos of fewer frames than their header says', where, problem=False)
    return Outcome(task.path, '', doubt, len(records), _is_empty(records))


def _is_empty(records: Iterable[dict]) -> bool:
    """Whether a detector has found nothing; a segmentor names every pixel."""
    return not any(record.get('detections', True) for record in records)


def _jpeg(picture: np.ndarray) -> bytes:
    if max(picture.shape[:2]) > MAX_JPEG:
        raise ValueError(f'a JPEG has {MAX_JPEG} pixels a side at most, not {picture.shape[:2]}')
    return cv2.imencode('.jpg', mmcv.rgb2bgr(picture))[1].tobytes()


def _json(record: dict) -> bytes:
    return json.dumps(record, indent=1).encode()
