"""Runs of an experiment: trained on the drawn data at a budget, scored, and logged one by one."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import Hook

from mmivit.apis.runner import build_runner


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
