"""Runs of an experiment: trained on the drawn data at a budget, scored, and logged one by one."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from tqdm import tqdm

from mmivit.apis.runner import build_runner


class BaseRun(ABC):
    """A frozen dataclass that says all about what is trained: equal runs give equal scores."""

    __dataclass_fields__: ClassVar[dict]

    @property
    def name(self) -> str:
        return '-'.join(str(value) for value in asdict(self).values())

    @property
    @abstractmethod
    def work(self) -> float:
        """About in proportion to its time, by which the time left is told."""


AnyRun = TypeVar('AnyRun', bound=BaseRun)


class RunLog:
    """Records in a JSON-lines file, one per run: a killed experiment goes on where it was.

    A last line that was being written when the process ended is dropped from the file.

    Raises:
        ValueError: a whole line of the file is not JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict] = []
        if not path.exists():
            return
        written = path.read_bytes()
        whole = written.rpartition(b'\n')[0]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self.records.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f'{path}, line {number}, is not a record: {error}') from None
        os.truncate(path, len(whole) + 1 if whole else 0)

    def get(self, **key) -> dict | None:
        """The record of a run, if it was made."""
        return next((r for r in self.records if key.items() <= r.items()), None)

    def add(self, **record) -> None:
        self.records.append(record)
        with self.path.open('a') as file:
            file.write(json.dumps(record) + '\n')


def make_runs(
    runs: Iterable[AnyRun],
    train: Callable[[AnyRun], dict],
    log: RunLog,
    jobs: int = 0,
) -> None:
    """Make the runs that the log lacks, several at a time; each is a record of its fields and more.

    What they print goes to ``log.txt`` beside the log.

    Args:
        runs: in the order in which they are begun.
        train: makes a run in another process (it is pickled), and says what to record.
        log: gets a record as soon as a run is done.
        jobs: runs at a time, each a process; as many as CPU cores, up to 8, if 0. Small models
            keep neither two cores nor a GPU busy.

    Raises:
        ValueError: ``jobs`` is negative.
        RuntimeError: a run failed.
    """
    runs = list(runs)
    missing = [run for run in runs if not log.get(**asdict(run))]
    if not missing:
        return
    jobs = min(jobs or min(8, os.cpu_count() or 1), len(missing))
    printed = log.path.with_name('log.txt')
    with (
        ProcessPoolExecutor(
            jobs,
            multiprocessing.get_context('spawn'),
            _start_worker,
            (printed, max(1, torch.get_num_threads() // jobs)),
        ) as pool,
        tqdm(
            total=sum(run.work for run in runs),
            initial=sum(run.work for run in runs) - sum(run.work for run in missing),
            bar_format='{percentage:3.0f}% |{bar}| {elapsed} < {remaining}{postfix}',
            postfix=f'{len(runs) - len(missing)} of {len(runs)} runs',
            smoothing=0,  # runs end in pairs
        ) as bar,
    ):
        futures = {pool.submit(train, run): run for run in missing}
        try:
            for done, future in enumerate(as_completed(futures), len(runs) - len(missing) + 1):
                run = futures[future]
                try:
                    log.add(**asdict(run), **future.result())
                except Exception as error:
                    raise RuntimeError(f'{run} failed: {error!r}; see {printed}') from error
                bar.set_postfix_str(f'{done} of {len(runs)} runs', refresh=False)
                bar.update(run.work)
        except BaseException:
            # The pool would train all that was submitted before the process may end.
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def make_phases(
    phases: Sequence[Sequence[AnyRun]],
    train: Callable[[AnyRun], dict],
    folder: Path,
    jobs: int = 0,
) -> tuple[RunLog, list[AnyRun]]:
    """Make runs in phases, each of which needs what those before it have written.

    Args:
        phases: the runs of each.
        train: as in :func:`make_runs`, as ``jobs`` is.
        folder: has ``runs.jsonl``, one record per finished run.

    Returns:
        All records, and the runs of all phases.

    Raises:
        ValueError: ``runs.jsonl`` is damaged, or ``jobs`` negative.
        RuntimeError: a run failed.
    """
    log = RunLog(folder / 'runs.jsonl')
    for runs in phases:
        make_runs(runs, train, log, jobs)
    return log, [run for runs in phases for run in runs]


def _start_worker(log: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    sys.stdout = sys.stderr = log.open('a', buffering=1)  # what mmengine and pycocotools print
    # Workers of a killed process would wait for work for ever.
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def set_budget(
    cfg: Config,
    root: Path,
    seed: int,
    size: int,
    batch: int,
    iterations: int,
    val_interval: int | None = None,
) -> None:
    """Fit a config on the built-in data set, of either task, to a data set and a budget.

    Args:
        cfg: changed in place.
        root: folder of the data set.
        seed: of weights and of the images' order.
        size: side of the images as the network sees them in validation, pixels.
        batch: images per iteration.
        iterations: length of the run; the first eighth warms up, then the rate falls to zero.
        val_interval: iterations between evaluations; one at the end if not given.
    """
    cfg.randomness = dict(seed=seed)
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (size, size)
    else:
        cfg.val_evaluator.ann_file = str(root / 'annotations' / 'instances_validation.json')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = str(root)
        loader.batch_size = batch
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    cfg.val_dataloader.dataset.pipeline[1].scale = (size, size)
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=iterations, val_interval=val_interval or iterations
    )
    warm_up = max(1, iterations // 8)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warm_up),
        dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=warm_up, end=iterations),
    ]
    cfg.log_processor = dict(by_epoch=False)
    cfg.default_hooks.checkpoint = None


def boxes_only(cfg: Config) -> None:
    """Faster R-CNN out of Mask R-CNN, for data without masks."""
    cfg.model.type = 'FasterRCNN'
    cfg.model.data_preprocessor.pad_mask = False
    for part in ('mask_roi_extractor', 'mask_head'):
        del cfg.model.roi_head[part]
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        for step in loader.dataset.pipeline:
            if step.type == 'LoadAnnotations':
                step.with_mask = False
    cfg.val_evaluator.metric = 'bbox'


def train_and_score(cfg: Config, *hooks: Hook) -> dict[str, dict[str, float]]:
    """Train as a config says, with further hooks; the metrics of every evaluation, by iteration."""
    recorder = _ScoreRecorder()
    runner = build_runner(cfg)
    for hook in (recorder, *hooks):
        runner.register_hook(hook)
    runner.train()
    return recorder.scores


class _ScoreRecorder(Hook):
    def __init__(self) -> None:
        self.scores: dict[str, dict[str, float]] = {}

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        self.scores[str(runner.iter)] = {name: float(value) for name, value in metrics.items()}


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Mean and standard deviation, as tables have them; of one value, that value."""
    values = list(values)
    mean = f'{statistics.mean(values):.{digits}f}'
    return f'{mean} ± {statistics.stdev(values):.{digits}f}' if values[1:] else mean
