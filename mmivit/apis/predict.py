"""Predictions for images, folders and videos: pictures, records, label maps and a report."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config
from tqdm import tqdm

from mmivit.apis.config import check_scope, tested_dataset
from mmivit.apis.images import IMAGE_SUFFIXES, find_images, find_passed_over
from mmivit.apis.predict_files import (
    Outcome,
    Settings,
    Task,
    build_predictor,
    find_outcomes,
    prepared_config,
)
from mmivit.apis.predict_processes import find_outcomes_in_processes
from mmivit.apis.videos import VIDEO_SUFFIXES
from mmivit.datasets.report import DataReport, Finding
from mmivit.errors import LaunchError
from mmivit.utils.report_page import check_replaceable, write_report
from mmivit.utils.text import printable


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
    cfg = prepared_config(settings)
    tasks = _find_tasks(cfg, inputs, out)
    check_replaceable(out)
    _check_inside(out, [task.targets for task in tasks])
    existing = [path for task in tasks for path in task.targets if os.path.lexists(path)]
    if existing and not force:
        raise FileExistsError(
            f'{printable(existing[0])} exists ({len(existing)} such files); '
            'name another --out, or replace them with --force'
        )
    predictor = build_predictor(settings, cfg)
    if processes > 1:
        outcomes = find_outcomes_in_processes(predictor, settings, tasks, processes)
    else:
        outcomes = find_outcomes(predictor, tasks, batch_size, shown=True)
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
