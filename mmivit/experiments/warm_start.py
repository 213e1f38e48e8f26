"""Is a warm start of iMHSA from ordinary attention worth it? Against training from scratch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from mmivit.apis.config import read_config
from mmivit.datasets.shapes import ShapesSpec, write_dataset
from mmivit.experiments.classification import (
    build_classifier,
    held_out_accuracy,
    train_classifier,
)
from mmivit.experiments.runs import RunLog, set_budget, spread, train_and_score
from mmivit.utils.figures import save_figure
from mmivit.utils.tables import markdown_table
from mmivit.weights.converters import convert
from mmivit.weights.sources import fetch

KINDS = (  # what is compared after pretraining: name, pretrained, side of the landmark grid
    ('from scratch, 7', False, 7),
    ('from scratch, 14', False, 14),
    ('warm start, 7', True, 7),
    ('warm start, 14', True, 14),
)
SCORES = (  # what is scored, and where the log has it
    ('accuracy (%), classification', 'classify ', 'accuracy'),
    ('mIoU (%), segmentation', '', 'miou'),
)


@dataclass(frozen=True)
class WarmStartBudget:
    """How much is trained, the same for every seed and start.

    Args:
        pretrain: iterations of classification.
        pretrain_size: side of its images, pixels.
        continued: iterations of further classification, with iMHSA.
        finetune: iterations of segmentation.
        size: side of its images, pixels.
        val_interval: iterations between evaluations.
        images: training images of each task.
        held_out: held-out images of each task.
    """

    pretrain: int = 400
    pretrain_size: int = 128
    continued: int = 160
    finetune: int = 240
    size: int = 192
    val_interval: int = 60
    images: int = 800
    held_out: int = 60


def warm_start(folder: Path, config: Path, seeds: Sequence[int], budget: WarmStartBudget) -> RunLog:
    """Is a warm start of iMHSA from ordinary attention worth it?

    For every seed, a classifier with ``attention='mhsa'`` is trained on drawn images, converted to
    iMHSA, scored at once, trained further, and used as the backbone of a segmentor; the same
    classifier and segmentor with iMHSA are trained from scratch for as long.

    Args:
        folder: data sets, weights and ``runs.jsonl`` go here.
        config: UperNet on the built-in data set.
        seeds: one pretraining and a set of segmentors each.
        budget: how much is trained.

    Raises:
        ValueError: ``runs.jsonl`` is damaged, or of another budget.
        FileExistsError: the folder holds other data sets.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = RunLog(folder / 'runs.jsonl')
    wanted = dict(run='budget', **asdict(budget))
    if not log.records:
        log.add(**wanted)
    elif log.records[0] != wanted:
        raise ValueError(
            f'{log.path} begins with {log.records[0]}; expected was {wanted}. Name another folder.'
        )
    sides = (budget.pretrain_size, 2 * budget.pretrain_size)
    for side in sides:  # also larger than in training
        spec = ShapesSpec(budget.images, 4 * budget.held_out, side)
        write_dataset(folder / f'classify_{side}', spec, classification=True)
    write_dataset(folder / 'segment', ShapesSpec(budget.images, budget.held_out, budget.size))
    runs = [('pretrain', seed) for seed in seeds]
    runs += [(kind, seed) for seed in seeds for kind in KINDS]
    for kind, seed in tqdm(runs, desc='runs', unit='run'):
        weights = folder / f'mhsa_{seed}.pth'
        if kind == 'pretrain':
            if not log.get(run=kind, seed=seed):
                model = build_classifier(seed, attention='mhsa')
                train_classifier(model, folder / f'classify_{sides[0]}', seed, budget.pretrain)
                torch.save(model.state_dict(), weights)
                scores = _converted_accuracy(model, [folder / f'classify_{s}' for s in sides])
                log.add(run=kind, seed=seed, accuracy=scores)
            continue
        name, pretrained, landmarks = kind
        if not log.get(run=f'classify {name}', seed=seed):
            model = build_classifier(seed, landmarks=landmarks)
            if pretrained:
                converted, _ = convert(fetch(weights), attention='imhsa', target='timm')
                model.load_state_dict(converted, strict=False)
            root, interval = folder / f'classify_{sides[0]}', budget.continued // 4
            scores = train_classifier(model, root, seed, budget.continued, interval)
            log.add(run=f'classify {name}', seed=seed, accuracy=scores)
        if not log.get(run=name, seed=seed):
            backbone = dict(landmarks=landmarks)
            if pretrained:
                backbone['init_cfg'] = dict(type='mmivit.PretrainedIViT', checkpoint=str(weights))
            log.add(run=name, seed=seed, miou=segment(config, folder, seed, backbone, budget))
    return log


def segment(
    config: Path, folder: Path, seed: int, backbone: dict, budget: WarmStartBudget
) -> dict[str, float]:
    """Train a segmentor on ``folder/segment``; held-out mIoU (percent) by iteration."""
    cfg = read_config(str(config))
    cfg.work_dir = str(folder / 'work_dir')
    cfg.model.backbone.update(backbone)
    set_budget(cfg, folder / 'segment', seed, budget.size, 4, budget.finetune, budget.val_interval)
    scores = train_and_score(cfg)
    return {iteration: metrics['mIoU'] for iteration, metrics in scores.items()}


def _converted_accuracy(model: nn.Module, roots: Iterable[Path]) -> dict[str, float]:
    """Held-out accuracy as trained and, without further training, with iMHSA in its place."""
    models = {'mhsa': model}
    converted, _ = convert(model.state_dict(), attention='imhsa', target='timm')
    for landmarks in (7, 14):
        imhsa = build_classifier(0, landmarks=landmarks)
        imhsa.load_state_dict(converted, strict=False)
        models[f'imhsa, {landmarks}'] = imhsa
    return {
        f'{name} at {root.name.removeprefix("classify_")}': held_out_accuracy(candidate, root)
        for root in roots
        for name, candidate in models.items()
    }


def warm_start_tables(log: RunLog) -> str:
    """Markdown: accuracy right after conversion, then scores by iteration; mean and spread."""
    pretrained = [r['accuracy'] for r in log.records if r['run'] == 'pretrain']
    rows = [[name, spread(a[name] for a in pretrained)] for name in pretrained[0]]
    tables = [markdown_table(['attention, landmarks, image side', 'accuracy'], rows)]
    for title, prefix, key in SCORES:
        runs = _runs(log, prefix, key)
        iterations = list(next(iter(runs.values()))[0])
        rows = [
            [name, *(spread(s[i] for s in scores) for i in iterations)]
            for name, scores in runs.items()
        ]
        tables.append(markdown_table([f'{title}: start, landmarks', *iterations], rows))
    return '\n\n'.join(tables)


def _runs(log: RunLog, prefix: str, key: str) -> dict[str, list[dict[str, float]]]:
    return {name: [r[key] for r in log.records if r['run'] == prefix + name] for name, *_ in KINDS}


def plot_warm_start(log: RunLog, path: Path) -> None:
    """Scores against iterations, a line per start with the range over seeds, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure((11, 4))
    panels = figure.subplots(1, len(SCORES))
    for axes, (title, prefix, key) in zip(panels, SCORES):
        runs = _runs(log, prefix, key)
        for (name, _, landmarks), colour in zip(KINDS, ('C0', 'C0', 'C1', 'C1')):
            iterations = [int(i) for i in runs[name][0]]
            columns = [[s[str(i)] for s in runs[name]] for i in iterations]
            style = '-' if landmarks == 7 else '--'
            mean = [statistics.mean(column) for column in columns]
            axes.plot(iterations, mean, style, color=colour, marker='o', label=f'{name} landmarks')
            low, high = [min(c) for c in columns], [max(c) for c in columns]
            axes.fill_between(iterations, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.set(xlabel='iteration', ylabel=f'held-out {title}')
        axes.grid(alpha=0.3)
    panels[-1].legend(title='mean and range over seeds', loc='upper left')
    figure.suptitle('iViT-Nano with iMHSA on drawn images')
    save_figure(figure, path, dpi=110, bbox_inches='tight')
