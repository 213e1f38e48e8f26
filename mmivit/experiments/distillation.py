"""How far does distillation bring a converted iViT, on which images, and which way is best?

A classifier with MHSA is trained and converted; the converted one learns from it without labels, in
several ways and on several images. It is scored by the teacher's own task as it goes, and at last
used as the backbone of a segmentor and a detector. As many tokens go to a landmark as at 224 x 224
with 7 x 7 landmarks; the teacher's score without its attention says what there is to lose.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmivit.apis.config import read_config
from mmivit.experiments.classification import (
    build_classifier,
    count_classes,
    held_out_accuracy,
    train_classifier,
)
from mmivit.experiments.data import Data
from mmivit.experiments.runs import BaseRun, RunLog, make_phases, train_and_score
from mmivit.experiments.warm_start import run_config, silenced
from mmivit.weights.checkpoint import write_checkpoint
from mmivit.weights.converters import convert
from mmivit.weights.sources import fetch

TEACHER = 'MHSA itself'
ATTENTION = r'stages\.[23].*token_mixer'


class Way(NamedTuple):
    """How a student learns.

    Args:
        images: of SOURCES.
        by_block: every block from the teacher's features.
        learns: pattern of the parameters that learn.
        rate: learning rate.
    """

    images: str = 'the same'
    by_block: bool = True
    learns: str = ''
    rate: float = 1e-3


BASE = 'all, block by block, 1e-3'
WAYS = {
    BASE: Way(),
    'all, block by block, 3e-4': Way(rate=3e-4),
    'all, end to end, 1e-3': Way(by_block=False),
    'all, end to end, 3e-4': Way(by_block=False, rate=3e-4),
    'all, end to end, 1e-4': Way(by_block=False, rate=1e-4),
    'attention, block by block, 1e-3': Way(learns=ATTENTION),
    'attention, end to end, 1e-3': Way(by_block=False, learns=ATTENTION),
    'attention, end to end, 3e-4': Way(by_block=False, learns=ATTENTION, rate=3e-4),
    'on other images': Way(images='other'),
    'at twice the side': Way(images='larger'),
}
SOURCES = ('the same', 'other', 'larger')
STARTS = (TEACHER, 'distilled', 'converted', 'from scratch')
TASKS = {'teach': 0.7, 'distil': 1, 'segmentation': 2, 'detection': 4}  # work per pixel


@dataclass(frozen=True)
class Budget:
    """How much is trained, the same for every seed.

    Args:
        pretrain: iterations of the teacher.
        distil: iterations of a student.
        size: side of their images, pixels.
        landmarks: side of the landmarks' grid.
        downstream: iterations of segmentation and of detection; none if 0.
        downstream_size: side of their images, pixels.
        batch: their images per iteration; 16 in the others, at twice the side a fourth.
        images: drawn training images of each task.
        held_out: drawn images that a segmentor or detector is scored on; a fourth of a
            classifier's.
        ways: of WAYS.
    """

    pretrain: int = 400
    distil: int = 100
    size: int = 128
    landmarks: int = 4
    downstream: int = 400
    downstream_size: int = 96
    batch: int = 4
    images: int = 800
    held_out: int = 60
    ways: tuple[str, ...] = tuple(WAYS)


DRAWN = Budget()
# Solar cells are nearly blind to attention: they tell no way from another.
PHOTOGRAPHS = Budget(size=96, landmarks=3, downstream=0, ways=(BASE,))


@dataclass(frozen=True)
class Run(BaseRun):
    """What is trained; equal runs are one.

    Args:
        task: one of TASKS.
        seed: of weights and of the images' order.
        start: the teacher, one of WAYS, or downstream one of STARTS.
        size: side of the images, pixels.
        batch: images per iteration.
        iterations: length of training.
        landmarks: side of the landmarks' grid.
        pretrained: iterations of the teacher.
        distilled: iterations of the student, downstream.
    """

    task: str
    seed: int
    start: str
    size: int
    batch: int
    iterations: int
    landmarks: int
    pretrained: int
    distilled: int = 0

    @property
    def work(self) -> float:
        return TASKS[self.task] * self.size**2 * self.iterations * self.batch


def plan(budget: Budget, data: Data, seeds: Sequence[int]) -> list[list[Run]]:
    """The teachers, the students, and what begins with either."""
    shared = dict(landmarks=budget.landmarks, pretrained=budget.pretrain)
    phases: list[list[Run]] = [[], [], []]
    for seed in seeds:
        teacher = Run('teach', seed, TEACHER, budget.size, 16, budget.pretrain, **shared)
        phases[0].append(teacher)
        for name in budget.ways:
            student = replace(teacher, task='distil', start=name, iterations=budget.distil)
            if WAYS[name].images == 'larger':
                student = replace(student, size=2 * budget.size, batch=4)
            phases[1].append(student)
        if budget.downstream:
            phases[2] += [
                Run(
                    task,
                    seed,
                    start,
                    budget.downstream_size,
                    budget.batch,
                    budget.downstream,
                    distilled=budget.distil,
                    **shared,
                )
                for task in data.downstream
                for start in STARTS
            ]
    return phases


def distil(
    folder: Path, configs: Path, data: Data, budget: Budget, seeds: Sequence[int], jobs: int = 0
) -> tuple[RunLog, list[Run]]:
    """Train what is not in ``folder/runs.jsonl`` yet.

    Args:
        folder: weights and ``runs.jsonl``, one record per finished run.
        configs: folder of the repository's configs.
        data: of :func:`mmivit.experiments.data.write_data`.
        budget: how much is trained.
        seeds: a teacher each, and all that begins with it.
        jobs: as in :func:`mmivit.experiments.runs.make_runs`.

    Returns:
        All records, and the runs that these settings ask for.

    Raises:
        ValueError: ``runs.jsonl`` is damaged, or ``jobs`` negative.
        RuntimeError: a run failed.
    """
    make = partial(train, data=data, configs=configs, folder=folder)
    return make_phases(plan(budget, data, seeds), make, folder, jobs)


def train(run: Run, data: Data, configs: Path, folder: Path) -> dict[str, object]:
    """Make one run: its scores in percent by iteration, and more; the seconds it took."""
    begun = time.perf_counter()
    teacher = folder / f'mhsa_{run.pretrained}_{run.seed}.pth'
    if run.task == 'teach':
        found = _teach(run, data, teacher)
    elif run.task == 'distil':
        found = _distil(run, data, configs, folder, teacher)
    else:
        cfg = run_config(run, data, configs)
        cfg.work_dir = str(folder / 'work_dirs' / run.name)
        cfg.default_hooks.checkpoint = None
        backbone = cfg.model.backbone
        backbone.update(attention='mhsa' if run.start == TEACHER else 'imhsa')
        if run.start != TEACHER:
            backbone.landmarks = run.landmarks
        student = student_weights(folder, run.seed, run.distilled, run.pretrained)
        weights = {TEACHER: teacher, 'converted': teacher, 'distilled': student}.get(run.start)
        if weights:
            backbone.init_cfg = dict(type='mmivit.PretrainedIViT', checkpoint=str(weights))
        key, scale = dict(segmentation=('mIoU', 1), detection=('coco/bbox_mAP_50', 100))[run.task]
        scores = train_and_score(cfg)
        found = dict(score={i: scale * metrics[key] for i, metrics in scores.items()})
    return dict(found, seconds=round(time.perf_counter() - begun, 1))


def student_weights(folder: Path, seed: int, iterations: int, pretrained: int) -> Path:
    """The file of what the way BASE has given."""
    return folder / f'student_{pretrained}_{iterations}_{seed}.pth'


def _teach(run: Run, data: Data, weights: Path) -> dict[str, object]:
    """Train a classifier with MHSA; its scores, without attention too, and right after conversion.

    Of the conversion as the paper's landmarks start, too: there is more to learn.
    """
    root = data.classification[run.size]
    model = build_classifier(run.seed, count_classes(root), attention='mhsa')
    train_classifier(model, root, run.seed, run.iterations)
    write_checkpoint(weights, model.state_dict(), {}, force=True)
    scores = {}
    for side, held_out in data.classification.items():
        scores[f'MHSA at {side}'] = held_out_accuracy(model, held_out)
        scores[f'without attention at {side}'] = held_out_accuracy(silenced(model), held_out)
        for name, paper_start in (('converted', False), ('converted, as the paper starts', True)):
            converted = build_classifier(0, count_classes(root), landmarks=run.landmarks)
            state, _ = convert(
                model.state_dict(), attention='imhsa', target='timm', paper_start=paper_start
            )
            converted.load_state_dict(state, strict=False)
            scores[f'{name} at {side}'] = held_out_accuracy(converted, held_out)
    return dict(score=scores)


def _distil(run: Run, data: Data, configs: Path, folder: Path, teacher: Path) -> dict[str, object]:
    """Distil a student: scores and errors of stage 4 by iteration, and scores at other sides."""
    cfg = distil_config(run, data, configs)
    cfg.model.teacher = str(teacher)
    cfg.work_dir = str(folder / 'work_dirs' / run.name)
    metrics = train_and_score(cfg, _ScoreAtOnce())
    found = {
        name: {i: values[f'student/{key}'] for i, values in metrics.items()}
        for name, key in (('score', 'accuracy'), ('error', 'error_stages.3'))
    }
    state, _ = convert(fetch(f'{cfg.work_dir}/iter_{run.iterations}.pth'), target='timm')
    root = next(iter(data.classification.values()))
    student = build_classifier(0, count_classes(root), landmarks=run.landmarks)
    student.load_state_dict(state)
    if run.start == BASE:
        write_checkpoint(
            student_weights(folder, run.seed, run.iterations, run.pretrained), state, {}, force=True
        )
    sides = {str(side): held_out_accuracy(student, r) for side, r in data.classification.items()}
    return dict(found, sides=sides)


def distil_config(run: Run, data: Data, configs: Path) -> Config:
    """The config of a distillation: the one shipped for drawn data, changed.

    Args:
        run: what to train.
        data: its data sets.
        configs: folder of the repository's configs.
    """
    way = WAYS[run.start]
    cfg = read_config(str(configs / 'distill_ivit_shapes.py'))
    cfg.experiment_name = run.name  # two runs may begin in the same second
    cfg.log_level = 'WARNING'
    cfg.randomness = dict(seed=run.seed)
    cfg.model.student.landmarks = run.landmarks
    cfg.model.update(by_block=way.by_block, learns=way.learns)
    own = data.classification[run.size]
    folders = {
        'the same': own / 'train',
        'larger': own / 'train',
        'other': next(iter(data.downstream.values())) / 'images/training',
    }
    load = [dict(type='LoadImageFromFile'), dict(type='torchvision/ToImage')]
    same_size = [
        dict(type='torchvision/Resize', size=run.size, antialias=True),
        dict(type='torchvision/RandomCrop', size=run.size),
        dict(type='torchvision/RandomHorizontalFlip'),
    ]
    # Where labels are known, the score is that of the teacher's side.
    held_out = next(iter(data.classification.values())) / 'validation'
    for loader, root, pipeline in (
        (cfg.train_dataloader, folders[way.images], load + same_size),
        (cfg.val_dataloader, held_out, load),
    ):
        loader.update(batch_size=run.batch, num_workers=0)  # the other runs keep cores busy
        loader.dataset.update(data_root=str(root), data_prefix=dict(img_path=''))
        loader.dataset.pipeline = pipeline
    cfg.val_dataloader.dataset.labelled = True
    cfg.val_dataloader.batch_size = 16
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.optim_wrapper.optimizer.lr = way.rate
    warm_up = max(1, run.iterations // 8)
    warming, falling = cfg.param_scheduler
    warming.end = falling.begin = warm_up
    falling.end = run.iterations
    cfg.train_cfg.update(max_iters=run.iterations, val_interval=max(1, run.iterations // 4))
    cfg.default_hooks.checkpoint.interval = run.iterations
    cfg.default_hooks.checkpoint.save_optimizer = False
    return cfg


class _ScoreAtOnce(Hook):
    """An evaluation before the first iteration."""

    def before_train(self, runner: Runner) -> None:
        runner.val_loop.run()
