"""Experiments on the built-in data set: training runs at equal budget, their scores and plots."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import set_random_seed
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from mmivit.apis.runner import build_runner
from mmivit.datasets.shapes import ShapesSpec, write_dataset
from mmivit.weights.converters import convert
from mmivit.weights.sources import fetch

ARCH = 'nano'
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
                model = _classifier(seed, attention='mhsa')
                _classify(model, folder / f'classify_{sides[0]}', seed, budget.pretrain)
                torch.save(model.state_dict(), weights)
                scores = _converted_accuracy(model, [folder / f'classify_{s}' for s in sides])
                log.add(run=kind, seed=seed, accuracy=scores)
            continue
        name, pretrained, landmarks = kind
        if not log.get(run=f'classify {name}', seed=seed):
            model = _classifier(seed, landmarks=landmarks)
            if pretrained:
                converted, _ = convert(fetch(weights), attention='imhsa', target='timm')
                model.load_state_dict(converted, strict=False)
            root, interval = folder / f'classify_{sides[0]}', budget.continued // 4
            scores = _classify(model, root, seed, budget.continued, interval)
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
    cfg = Config.fromfile(config)
    cfg.work_dir = str(folder / 'work_dir')
    cfg.model.backbone.update(backbone)
    set_budget(cfg, folder / 'segment', seed, budget.size, 4, budget.finetune, budget.val_interval)
    scores = train_and_score(cfg)
    return {iteration: metrics['mIoU'] for iteration, metrics in scores.items()}


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


def _classifier(seed: int, **options) -> nn.Module:
    import timm

    set_random_seed(seed)
    return timm.create_model(f'ivit_{ARCH}', num_classes=5, **options)


def _classify(
    model: nn.Module, root: Path, seed: int, iterations: int, val_interval: int = 0
) -> dict[str, float]:
    """Train a classifier; held-out accuracy (percent) by iteration."""
    from timm.optim import create_optimizer_v2

    set_random_seed(seed)
    scores = {}
    optimizer = create_optimizer_v2(model, 'adamw', lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, iterations, pct_start=0.1)
    batches = _endless(_loader(root, 'train', training=True))
    progress = tqdm(range(1, iterations + 1), desc='classification')
    for iteration, (images, labels) in zip(progress, batches):
        loss = F.cross_entropy(model.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if val_interval and iteration % val_interval == 0:
            scores[str(iteration)] = _accuracy(model, root)
    model.eval()
    return scores


def _converted_accuracy(model: nn.Module, roots: Iterable[Path]) -> dict[str, float]:
    """Held-out accuracy as trained and, without further training, with iMHSA in its place."""
    models = {'mhsa': model}
    converted, _ = convert(model.state_dict(), attention='imhsa', target='timm')
    for landmarks in (7, 14):
        imhsa = _classifier(0, landmarks=landmarks)
        imhsa.load_state_dict(converted, strict=False)
        models[f'imhsa, {landmarks}'] = imhsa
    return {
        f'{name} at {root.name.removeprefix("classify_")}': _accuracy(candidate, root)
        for root in roots
        for name, candidate in models.items()
    }


@torch.no_grad()
def _accuracy(model: nn.Module, root: Path) -> float:
    model.eval()
    right = [
        (model(images).argmax(1) == labels)
        for images, labels in _loader(root, 'validation', training=False)
    ]
    return 100 * torch.cat(right).float().mean().item()


def _loader(root: Path, split: str, training: bool) -> DataLoader:
    from timm.data import create_dataset, create_transform

    dataset = create_dataset('', str(root), split=split, is_training=training)
    size = dataset[0][0].size[0]
    # Flips only: crops and colours would change what makes a class.
    dataset.transform = create_transform(
        size, is_training=training, scale=(1, 1), ratio=(1, 1), color_jitter=None, crop_pct=1.0
    )
    return DataLoader(dataset, batch_size=16, shuffle=training, drop_last=training)


def _endless(loader: DataLoader) -> Iterable:
    while True:
        yield from loader


def warm_start_tables(log: RunLog) -> str:
    """Markdown: accuracy right after conversion, then scores by iteration; mean and spread."""
    pretrained = [r['accuracy'] for r in log.records if r['run'] == 'pretrain']
    lines = ['| attention, landmarks, image side | accuracy |', '|---|---:|']
    lines += [f'| {name} | {spread(a[name] for a in pretrained)} |' for name in pretrained[0]]
    for title, prefix, key in SCORES:
        runs = _runs(log, prefix, key)
        iterations = list(next(iter(runs.values()))[0])
        lines += ['', f'| {title}: start, landmarks | {" | ".join(iterations)} |']
        lines.append('|---|' + '---:|' * len(iterations))
        for name, scores in runs.items():
            cells = ' | '.join(spread(s[i] for s in scores) for i in iterations)
            lines.append(f'| {name} | {cells} |')
    return '\n'.join(lines)


def _runs(log: RunLog, prefix: str, key: str) -> dict[str, list[dict[str, float]]]:
    return {name: [r[key] for r in log.records if r['run'] == prefix + name] for name, *_ in KINDS}


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Mean and standard deviation, as tables have them; of one value, that value."""
    values = list(values)
    mean = f'{statistics.mean(values):.{digits}f}'
    return f'{mean} ± {statistics.stdev(values):.{digits}f}' if values[1:] else mean


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
    figure.savefig(path, dpi=110, bbox_inches='tight')
