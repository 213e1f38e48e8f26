"""Predictions for images, folders and videos: pictures, records, label maps and a report."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from tqdm import tqdm

from mmivit.apis.batches import ahead, batches
from mmivit.apis.config import (
    check_channels,
    check_scope,
    read_config,
    set_test_data,
    tested_dataset,
)
from mmivit.apis.images import IMAGE_SUFFIXES, find_images, find_passed_over, read_image
from mmivit.apis.inferencers import Detector, Prediction, Prepared, Segmentor
from mmivit.apis.quiet import is_quiet, quiet
from mmivit.apis.videos import VIDEO_SUFFIXES, Video, as_loaded, written_video
from mmivit.datasets.images import darkness
from mmivit.datasets.loaders import decodes_as_stock
from mmivit.datasets.report import DataReport, Finding
from mmivit.errors import LaunchError
from mmivit.utils.files import RefusedFile, write_whole
from mmivit.utils.report_page import check_replaceable, write_report
from mmivit.utils.text import printable

MAX_JPEG = 65_500  # pixels a side, in OpenCV
SHARE = 8  # batches that a process takes at a time
FAILURES = (RefusedFile, ValueError, OSError, RuntimeError, cv2.error)  # of one file, not of all


@dataclass
class PredictReport:
    """Which files were predicted, which could not be used and why, and what to doubt."""

    written: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    doubts: DataReport = field(default_factory=lambda: DataReport('predicted'))
    videos: int = 0  # of those written
    frames: int = 0  # of these
    empty: int = 0  # of those written: a detector has found nothing

    def add(self, outcome: Outcome) -> None:
        """Take note of a file."""
        if outcome.failure:
            self.failed[outcome.path] = outcome.failure
            return
        self.written.append(outcome.path)
        self.videos += outcome.frames > 0
        self.frames += outcome.frames
        self.empty += outcome.empty
        self.doubts.add([outcome.doubt] if outcome.doubt else [])


@dataclass(frozen=True)
class Settings:
    """What a process needs to know for any of the files; see :func:`predict`."""

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


def predict(
    config: str,
    checkpoint: str,
    inputs: Iterable[str | Path],
    out: str | Path,
    device: str | None = None,
    score_thr: float = 0.3,
    force: bool = False,
    cfg_options: dict | None = None,
    batch_size: int = 1,
    processes: int = 1,
    opacity: float | None = None,
) -> PredictReport:
    """Predict on images and videos; write pictures, predictions and ``out/report.html``.

    For an image ``out/pictures/NAME.jpg`` and ``out/predictions/NAME.json``, from a segmentor also
    ``out/labels/NAME.png``, the label map with its palette. For a video ``out/videos/NAME.mp4``,
    one of its pictures, one JSON with all frames, and of a segmentor ``out/labels/NAME/000000.png``
    and so on. A file that cannot be read or predicted is reported and the others go on.

    Args:
        config: the model's config.
        checkpoint: its weights.
        inputs: images, videos and folders (searched recursively), images loaded as the config's
            test pipeline does; files of its own format are found by the data set's ``img_suffix``.
        out: folder to write.
        device: 'cpu', 'cuda:0' and so on; the best available if not given, of several processes
            each the next GPU.
        score_thr: detections below this score are left out; nothing to a segmentor.
        force: replace pictures and predictions written earlier.
        cfg_options: what to override in the config, by dotted key.
        batch_size: images that the model takes at once; they are of one shape, so that the
            results don't depend on it, but for rounding.
        processes: how many predict, this one among them, each with a model of its own.
        opacity: of masks and colours of classes in pictures, from 0 to 1; that of the config's
            visualiser if not given.

    Raises:
        FileNotFoundError: an input is missing.
        LaunchError: the config or the checkpoint is missing, or the config cannot be read or an
            option does not fit it.
        FileExistsError: a file to be written exists and ``force`` is off.
        PermissionError: a symbolic link in ``out`` leads out of it.
        OSError: the disk is full.
        CheckpointError: the checkpoint is unsafe, unreadable, or of something else.
    """
    for name, value in (('batch_size', batch_size), ('processes', processes)):
        if value < 1:
            raise LaunchError(f'{name} is {value}, and 1 at least')
    if opacity is not None and not 0 <= opacity <= 1:
        raise LaunchError(f'opacity is {opacity}, and lies from 0 (unseen) to 1')
    settings = Settings(config, checkpoint, device, score_thr, cfg_options, batch_size, opacity)
    out = Path(out)
    cfg = _config(settings)
    tasks = _find_tasks(cfg, inputs, out)
    check_replaceable(out)
    _check_inside(out, [task.targets for task in tasks])
    existing = [path for task in tasks for path in task.targets if os.path.lexists(path)]
    if existing and not force:
        raise FileExistsError(
            f'{printable(existing[0])} exists ({len(existing)} such files); '
            'name another --out, or replace them with --force'
        )
    predictor = _predictor(settings, cfg)
    if processes > 1:
        outcomes = _in_processes(predictor, settings, tasks, processes)
    else:
        outcomes = _outcomes(predictor, tasks, batch_size, shown=True)
    found = {}
    with tqdm(total=len(tasks), unit='file') as bar:
        for outcome in outcomes:
            found[outcome.path] = outcome
            bar.update()
    report = PredictReport()
    for task in tasks:
        report.add(found[task.path])
    report.doubts.add(
        Finding('files of formats that are not predicted', str(path), problem=False)
        for path in find_passed_over(inputs, _suffixes(cfg))
    )
    write_report(out, failed=report.failed)
    return report


def _config(settings: Settings) -> Config:
    """The config as it is predicted with."""
    cfg = read_config(settings.config, cfg_options=settings.cfg_options)
    check_channels(cfg)
    check_scope(cfg)
    set_test_data(cfg)
    return cfg


def _predictor(settings: Settings, cfg: Config, device: str | None = None) -> Detector | Segmentor:
    device = settings.device or device
    if check_scope(cfg) == 'mmseg':
        return Segmentor(cfg, settings.checkpoint, device, settings.opacity)
    return Detector(cfg, settings.checkpoint, device, settings.score_thr, settings.opacity)


def _suffixes(cfg: Config) -> tuple[str, ...]:
    """Ends of the names of images: the usual ones, and that of the config's data set."""
    own = (tested_dataset(cfg).get('img_suffix') or IMAGE_SUFFIXES[0]).lower()
    return IMAGE_SUFFIXES if own.endswith(IMAGE_SUFFIXES) else (*IMAGE_SUFFIXES, own)


def _find_tasks(cfg: Config, inputs: Iterable[str | Path], out: Path) -> list[Task]:
    suffixes = _suffixes(cfg)
    segments = check_scope(cfg) == 'mmseg'
    tasks, seen = [], {}
    for path, name in find_images(inputs, out, (*suffixes, *VIDEO_SUFFIXES)):
        lower = path.name.lower()
        is_video = lower.endswith(VIDEO_SUFFIXES) and not lower.endswith(suffixes)
        task = Task(path, _targets(out, name, segments, is_video), is_video)
        if task.targets[1] in seen:
            raise FileExistsError(f'two inputs would both be written to {task.targets[0]}')
        seen[task.targets[1]] = path
        tasks.append(task)
    return tasks


def _outcomes(
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
        return None, (str(error).strip() or type(error).__name__).splitlines()[0]


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


def _in_processes(
    predictor: Detector | Segmentor, settings: Settings, tasks: list[Task], count: int
) -> Iterator[Outcome]:
    """Predict in several processes, each of which takes a share when it has done the one before.

    This one is the first of them: it is through with some shares before the others have imported
    what they need.
    """
    images = [task for task in tasks if not task.is_video]
    size = max(1, min(SHARE * settings.batch_size, -(-len(images) // count)))
    shares = [images[first : first + size] for first in range(0, len(images), size)]
    shares += [[task] for task in tasks if task.is_video]
    own, shares = shares[0], shares[1:]
    count = min(count, 1 + len(shares))
    if not shares:
        yield from _outcomes(predictor, own, settings.batch_size, shown=True)
        return
    context = multiprocessing.get_context('spawn')  # forked, torch's threads and CUDA fail
    ranks = context.Queue()
    for rank in range(1, count):
        ranks.put(rank)
    begin: Callable = _begin
    threads = torch.get_num_threads(), cv2.getNumThreads()
    with ProcessPoolExecutor(count - 1, context, begin, (ranks, count, is_quiet())) as pool:
        try:
            left = {pool.submit(_predict_share, settings, share): share for share in shares}
            _share_cores(count)
            yield from _outcomes(predictor, own, settings.batch_size)
            while left:
                mine = next((future for future in reversed(left) if future.cancel()), None)
                if mine:
                    yield from _outcomes(predictor, left.pop(mine), settings.batch_size)
                else:
                    wait(left, return_when=FIRST_COMPLETED)
                for future in [future for future in left if future.done()]:
                    del left[future]
                    yield from future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(threads[0])
            cv2.setNumThreads(threads[1])


_process: dict = {}  # of a process that another has started: its rank, and its predictor if any


def _begin(ranks: Any, count: int, quietly: bool) -> None:
    """Of as many processes all but the first are silent; they share the cores and the GPUs."""
    _process['rank'] = ranks.get()
    if quietly:
        _process['quiet'] = quiet(told=False)
        _process['quiet'].__enter__()  # to the end
    sys.stdout = sys.stderr = open(os.devnull, 'w')  # noqa: SIM115 - to the end
    _share_cores(count)


def _share_cores(count: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    cv2.setNumThreads(max(1, cv2.getNumThreads() // count))


def _predict_share(settings: Settings, tasks: list[Task]) -> list[Outcome]:
    if 'predictor' not in _process:
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel(logging.ERROR)  # the process that started this one has told of the options
        cfg = _config(settings)
        logger.setLevel(level)
        gpus = torch.cuda.device_count()
        device = f'cuda:{_process["rank"] % gpus}' if gpus else None
        _process['predictor'] = _predictor(settings, cfg, device)
    return list(_outcomes(_process['predictor'], tasks, settings.batch_size))


def _targets(out: Path, name: Path, segments: bool, is_video: bool) -> tuple[Path, ...]:
    """What is written for a file; its own suffix stays, so that a.png and a.jpg differ."""
    paths = [out / 'pictures' / f'{name}.jpg', out / 'predictions' / f'{name}.json']
    if is_video:
        paths.append(out / 'videos' / f'{name}.mp4')
    if segments:
        labels = out / 'labels'
        paths.append(labels / name / '000000.png' if is_video else labels / f'{name}.png')
    return tuple(paths)


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


def _json(record: dict) -> bytes:
    return json.dumps(record, indent=1).encode()
