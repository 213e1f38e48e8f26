"""Is a warm start of iMHSA from ordinary attention worth it? Against other starts and from scratch.

A classifier with MHSA is trained and converted; it is scored at once, trained further, and used as
the backbone of a segmentor and a detector. Its attention may do nothing for the task at hand, and
then no conversion can lose anything: so its score without attention stands beside every other.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from torch import nn

from mmivit.apis.config import read_config
from mmivit.experiments.classification import (
    build_classifier,
    count_classes,
    held_out_accuracy,
    held_out_images,
    train_classifier,
)
from mmivit.experiments.data import Data
from mmivit.experiments.measures import DIVERSITY_IMAGES, stage3_diversity
from mmivit.experiments.runs import (
    BaseRun,
    RunLog,
    boxes_only,
    make_phases,
    set_budget,
    train_and_score,
)
from mmivit.models.attention import MHSA, DecomposedMHSA
from mmivit.weights.checkpoint import write_checkpoint
from mmivit.weights.converters import convert
from mmivit.weights.sources import fetch


class Start(NamedTuple):
    """Where a model begins: its attention, and what its weights are.

    Args:
        attention: kind of the attention.
        landmarks: side of the landmarks' grid.
        weights: from the classifier with MHSA; else from scratch.
        paper: converted weights start with the paper's key-less map.
    """

    attention: str = 'imhsa'
    landmarks: int = 7
    weights: bool = True
    paper: bool = False


STARTS = {
    'MHSA itself': Start('mhsa'),
    'from scratch, 7': Start(weights=False),
    'from scratch, 14': Start(landmarks=14, weights=False),
    '(1, 0), 7': Start(paper=True),
    '(1, 0), 14': Start(landmarks=14, paper=True),
    '(0, 2), 7': Start(),
    '(0, 2), 14': Start(landmarks=14),
}
DOWNSTREAM = ('MHSA itself', 'from scratch, 7', '(1, 0), 7', '(0, 2), 7')
# Content and locality, in stages 3 and 4, that are tried right after conversion.
TRIED = {
    f'({content:g}, {locality:g})': ((content, locality),) * 2
    for content, locality in (
        (1, 0),
        (0, 0),
        (0, 0.5),
        (0, 1),
        (0, 2),
        (0, 4),
        (0, 16),
        (0.5, 2),
        (1, 2),
    )
} | {'(0, 2), then (0, 4)': ((0, 2), (0, 4)), '(0, 4), then (0, 2)': ((0, 4), (0, 2))}
TASKS = {'pretrain': 1, 'classification': 1, 'segmentation': 2, 'detection': 4}  # work per pixel


@dataclass(frozen=True)
class Budget:
    """How much is trained, the same for every seed and start.

    Args:
        pretrain: iterations of classification with MHSA.
        size: side of its images, pixels; also scored at twice that side.
        continued: iterations of further classification.
        downstream: iterations of segmentation and of detection.
        downstream_size: side of their images, pixels.
        batch: their images per iteration.
        images: drawn training images of each task.
        held_out: drawn images that a segmentor or detector is scored on; a fourth of a
            classifier's.
        classified: the starts of further classification.
        tried: content and locality right after conversion, by the names in TRIED.
    """

    pretrain: int = 400
    size: int = 128
    continued: int = 160
    downstream: int = 400
    downstream_size: int = 96
    batch: int = 4
    images: int = 800
    held_out: int = 60
    classified: tuple[str, ...] = tuple(STARTS)
    tried: tuple[str, ...] = tuple(TRIED)


DRAWN = Budget()
PHOTOGRAPHS = Budget(
    size=96, downstream=600, downstream_size=160, classified=DOWNSTREAM, tried=('(1, 0)', '(0, 2)')
)


@dataclass(frozen=True)
class Run(BaseRun):
    """What is trained; equal runs are one.

    Args:
        task: one of TASKS.
        seed: of weights and of the images' order.
        start: one of STARTS.
        size: side of the images, pixels.
        batch: images per iteration.
        iterations: length of training.
        pretrained: iterations that the classifier with MHSA was trained for.
    """

    task: str
    seed: int
    start: str
    size: int
    batch: int
    iterations: int
    pretrained: int

    @property
    def work(self) -> float:
        return TASKS[self.task] * self.size**2 * self.iterations * self.batch


def plan(budget: Budget, data: Data, seeds: Sequence[int]) -> tuple[list[Run], list[Run]]:
    """The runs that train classifiers with MHSA, and those that begin with these."""
    shape = dict(size=budget.size, batch=16, pretrained=budget.pretrain)
    first = [
        Run('pretrain', seed, 'MHSA itself', iterations=budget.pretrain, **shape) for seed in seeds
    ]
    then = []
    for seed in seeds:
        for start in budget.classified:
            then.append(Run('classification', seed, start, iterations=budget.continued, **shape))
        shape_downstream = dict(
            size=budget.downstream_size,
            batch=budget.batch,
            iterations=budget.downstream,
            pretrained=budget.pretrain,
        )
        for task in data.downstream:
            then += [Run(task, seed, start, **shape_downstream) for start in DOWNSTREAM]
    return first, then


def warm_start(
    folder: Path, configs: Path, data: Data, budget: Budget, seeds: Sequence[int], jobs: int = 0
) -> tuple[RunLog, list[Run]]:
    """Train what is not in ``folder/runs.jsonl`` yet.

    Args:
        folder: weights and ``runs.jsonl``, one record per finished run.
        configs: folder of the repository's configs.
        data: of :func:`drawn` or :func:`photographs`.
        budget: how much is trained.
        seeds: a classifier with MHSA each, and all that begins with it.
        jobs: as in :func:`mmivit.experiments.runs.make_runs`.

    Returns:
        All records, and the runs that these settings ask for.

    Raises:
        ValueError: ``runs.jsonl`` is damaged, or ``jobs`` negative.
        RuntimeError: a run failed.
    """
    make = partial(train, data=data, configs=configs, folder=folder, tried=budget.tried)
    return make_phases(plan(budget, data, seeds), make, folder, jobs)


def train(
    run: Run, data: Data, configs: Path, folder: Path, tried: Sequence[str]
) -> dict[str, object]:
    """Make one run: its scores in percent by iteration, and more; the seconds it took."""
    begun = time.perf_counter()
    start, weights = STARTS[run.start], folder / f'mhsa_{run.pretrained}_{run.seed}.pth'
    if run.task == 'pretrain':
        found = _pretrain(run, data, weights, tried)
    elif run.task == 'classification':
        found = _classify(run, start, data.classification[run.size], weights)
    else:
        backbone: dict = dict(attention=start.attention, landmarks=start.landmarks)
        if start.weights:
            backbone['init_cfg'] = dict(
                type='mmivit.PretrainedIViT', checkpoint=str(weights), paper_start=start.paper
            )
        cfg = run_config(run, data, configs)
        cfg.work_dir = str(folder / 'work_dirs' / run.name)
        cfg.model.backbone.update(backbone)
        key, scale = dict(segmentation=('mIoU', 1), detection=('coco/bbox_mAP_50', 100))[run.task]
        scores = train_and_score(cfg)
        found = dict(score={i: scale * metrics[key] for i, metrics in scores.items()})
    return dict(found, seconds=round(time.perf_counter() - begun, 1))


def run_config(run: Run, data: Data, configs: Path) -> Config:
    """The config of a segmentor or of a Faster R-CNN: one shipped for drawn data, changed.

    Args:
        run: what to train.
        data: its data sets.
        configs: folder of the repository's configs.
    """
    detection = run.task == 'detection'
    name = 'mask_rcnn_ivit_shapes.py' if detection else 'upernet_ivit_shapes.py'
    cfg = read_config(str(configs / name))
    cfg.experiment_name = run.name  # two runs may begin in the same second
    cfg.log_level = 'WARNING'
    if detection:
        boxes_only(cfg)
        cfg.model.roi_head.bbox_head.num_classes = len(data.classes)
    root, interval = data.downstream[run.task], max(1, run.iterations // 4)
    set_budget(cfg, root, run.seed, run.size, run.batch, run.iterations, interval)
    cfg.default_hooks.checkpoint = dict(  # for pictures
        type='CheckpointHook', by_epoch=False, interval=run.iterations, save_optimizer=False
    )
    resize = dict(type='Resize', scale=(run.size, run.size), keep_ratio=True)
    cfg.train_dataloader.dataset.pipeline.insert(2, resize)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)  # the other runs keep cores busy
        if detection:
            loader.dataset.metainfo = dict(classes=data.classes)
    return cfg


def _pretrain(run: Run, data: Data, weights: Path, tried: Sequence[str]) -> dict[str, object]:
    """Train a classifier with MHSA; its scores, and those right after conversion."""
    root = data.classification[run.size]
    model = build_classifier(run.seed, count_classes(root), attention='mhsa')
    train_classifier(model, root, run.seed, run.iterations)
    write_checkpoint(weights, model.state_dict(), {}, force=True)
    scores = {}
    for side, held_out in data.classification.items():
        scores[f'MHSA at {side}'] = held_out_accuracy(model, held_out)
        scores[f'without attention at {side}'] = held_out_accuracy(silenced(model), held_out)
        for landmarks in (7, 14):
            start = Start(landmarks=landmarks)
            converted = _start_model(start, model.state_dict(), count_classes(root))
            for name in tried:
                for stage, (content, locality) in zip(converted.stages[2:], TRIED[name]):
                    for module in stage.modules():
                        if isinstance(module, DecomposedMHSA):
                            nn.init.constant_(module.content, content)
                            nn.init.constant_(module.locality, locality)
                scores[f'{name}, {landmarks} at {side}'] = held_out_accuracy(converted, held_out)
    return dict(score=scores)


def _classify(run: Run, start: Start, root: Path, weights: Path) -> dict[str, object]:
    """Train a classifier from one of the starts; its scores, and how alike its heads are."""
    state = fetch(weights) if start.weights else None
    model = _start_model(start, state, count_classes(root), run.seed)
    images = held_out_images(root, DIVERSITY_IMAGES)
    before = stage3_diversity(model, images)
    at_once = {'0': held_out_accuracy(model, root)}
    scores = train_classifier(model, root, run.seed, run.iterations, max(1, run.iterations // 4))
    diversity = dict(before=before, after=stage3_diversity(model, images))
    return dict(score=at_once | scores, diversity=diversity)


def _start_model(start: Start, state: dict | None, classes: int, seed: int = 0) -> nn.Module:
    """A classifier at one of the starts; ``state`` is the weights of one with MHSA."""
    model = build_classifier(seed, classes, attention=start.attention, landmarks=start.landmarks)
    if state is not None:
        converted, _ = convert(
            state, attention=start.attention, target='timm', paper_start=start.paper
        )
        model.load_state_dict(converted, strict=False)
    return model


def silenced(model: nn.Module) -> nn.Module:
    """A copy whose attentions answer nothing but zeros."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, MHSA):
            nn.init.zeros_(module.proj.weight)
    return model
