"""Ablations on the hard drawn data: attentions, interaction, landmarks, heads, tokens, peers.

Every run trains from scratch for the same number of images and is scored once, at its end. Beside
mIoU there is the accuracy of the variant: how often, where an object's shape is right, its other
half is, which only the beacon elsewhere in the image tells (mmivit/shapes.py). Chance is 50 %,
and what lies above it came from afar.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import METRICS
from mmengine.runner import Runner
from torch import Tensor
from tqdm import tqdm

from mmivit.analysis.attention_maps import head_diversity
from mmivit.datasets.shapes import BEACONS, HARD_SHAPES, ShapesSpec, write_dataset
from mmivit.experiments.warm_start import RunLog, set_budget, train_and_score
from mmivit.models.attention import ATTENTIONS, INTERACTIONS

# Compared within iViT: nano's widths, with half of its convolution blocks. They reach about 50
# pixels, so that over most of an image only attention carries anything.
TRUNK = dict(depths=(1, 1, 4, 1), widths=(32, 64, 128, 256))
LEARNING_RATE = 2e-3  # AdamW, for every model
BACKGROUND_WEIGHT = 0.2  # in the segmentation loss: four fifths of the pixels, and no question
HEAD_DIMS = (64, 32, 16, 8)  # 2, 4, 8 and 16 heads in stage 3
# All with nano's four widths, so that necks and heads are the same.
PEERS = {
    'iViT-nano': dict(type='mmivit.IViT', arch='nano'),
    'Swin': dict(
        type='mmdet.SwinTransformer',
        embed_dims=32,
        depths=(2, 2, 4, 2),
        num_heads=(1, 2, 4, 8),
        drop_path_rate=0.0,
    ),
    'PVTv2': dict(
        type='mmdet.PyramidVisionTransformerV2',
        embed_dims=32,
        num_layers=(2, 2, 2, 2),
        num_heads=(1, 2, 4, 8),
        drop_path_rate=0.0,
    ),
    'ResNet': dict(
        type='mmdet.ResNet', depth=18, base_channels=32, stem_channels=32, norm_eval=False
    ),
}
TASKS = dict(light=1, upernet=2, mask_rcnn=4)  # and about how long they take, per pixel
DIVERSITY = {  # what is recorded of heads, and how tables call it
    'map_cosine': "maps' cosine",
    'output_cka': "outputs' CKA",
    'effective_rank': "maps' effective rank",
}
DIVERSITY_IMAGES = 8


@dataclass(frozen=True)
class Preset:
    """How much is trained.

    Args:
        size: side of the drawn images, pixels; also fed at twice that side.
        images: training images.
        held_out: images that are scored.
        batch: images per iteration.
        iterations: of a run with the light segmentor.
        peer_iterations: of a run with UperNet or Mask R-CNN.
        seeds: of the groups attention and interaction.
        other_seeds: of the other groups.
        landmarks_of: attentions whose landmarks are varied.
    """

    size: int = 96
    images: int = 400
    held_out: int = 80
    batch: int = 4
    iterations: int = 550
    peer_iterations: int = 400
    seeds: int = 3
    other_seeds: int = 1
    landmarks_of: Sequence[str] = ('imhsa',)

    def __post_init__(self) -> None:
        if min(self.seeds, self.other_seeds) < 1:
            raise ValueError(f'seeds={self.seeds}, {self.other_seeds}: expected at least 1')


PRESETS = {
    'quick': Preset(),
    'full': Preset(
        size=128,
        images=4000,
        held_out=400,
        batch=8,
        iterations=3000,
        peer_iterations=6000,
        seeds=5,
        other_seeds=5,
        landmarks_of=('decomposed', 'imhsa'),
    ),
}


@dataclass(frozen=True)
class Run:
    """What is trained: equal runs are one, whichever groups they stand in.

    Args:
        size: side of the images as the network sees them, pixels.
        iterations: length of training.
        batch: images per iteration.
        seed: of weights and of the images' order.
        task: one of TASKS.
        backbone: one of PEERS; with the light segmentor, ``TRUNK``.
        attention, landmarks, interaction, head_dim: as in :class:`mmivit.models.IViT`.
    """

    size: int
    iterations: int
    batch: int
    seed: int = 0
    task: str = 'light'
    backbone: str = 'iViT-nano'
    attention: str = 'imhsa'
    landmarks: int = 7
    interaction: str = 'post'
    head_dim: int = 32

    @property
    def name(self) -> str:
        return '-'.join(str(value) for value in asdict(self).values())

    @property
    def work(self) -> int:
        """About in proportion to its time, by which the time left is told."""
        return TASKS[self.task] * self.size**2 * self.iterations * self.batch


# A row of a group's table: its name, the number that is varied if any, and the runs behind it.
Row = tuple[str, 'int | None', list[Run]]


def plan(preset: Preset) -> dict[str, list[Row]]:
    """Rows of every group; runs that groups share are equal."""
    base = Run(preset.size, preset.iterations, preset.batch)
    # The landmarks' grid can't exceed the tokens': only large images tell 14 from 7.
    large = replace(base, size=2 * preset.size)
    peer = replace(base, iterations=preset.peer_iterations)
    rows = {
        'attention': [(name, None, [replace(base, attention=name)]) for name in ATTENTIONS],
        'interaction': [
            ('none', None, [replace(base, attention='decomposed')]),
            *((name, None, [replace(base, interaction=name)]) for name in INTERACTIONS),
        ],
        'landmarks': [
            (name, side, [replace(large, attention=name, landmarks=side)])
            for name in preset.landmarks_of
            for side in (4, 7, 14)
        ],
        'heads': [
            (name, TRUNK['widths'][2] // dim, [replace(base, attention=name, head_dim=dim)])
            for name in ('decomposed', 'imhsa')
            for dim in HEAD_DIMS
        ],
        'tokens': [
            (name, (run.size // 16) ** 2, [replace(run, attention=name)])
            for name in ATTENTIONS
            for run in (base, large)
        ],
        'peers': [
            (
                name,
                None,
                [replace(peer, backbone=name, task=task) for task in ('upernet', 'mask_rcnn')],
            )
            for name in PEERS
        ],
    }
    for group, group_rows in rows.items():
        seeds = preset.seeds if group in ('attention', 'interaction') else preset.other_seeds
        for _, _, runs in group_rows:
            runs[:] = [replace(run, seed=seed) for seed in range(seeds) for run in runs]
    return rows


GROUPS = tuple(plan(Preset()))


def ablate(
    folder: Path,
    configs: Path,
    preset: Preset,
    groups: Sequence[str] = GROUPS,
    jobs: int = 0,
    seeds: int | None = None,
) -> tuple[RunLog, dict[str, list[Row]]]:
    """Train what is not in ``folder/runs.jsonl`` yet, several runs at a time.

    Args:
        folder: data, logs and ``runs.jsonl``, one record per finished run.
        configs: folder of the repository's configs.
        preset: how much is trained.
        groups: which of GROUPS.
        jobs: runs at a time, each a process; as many as CPU cores, up to 8, if 0. Small models
            keep neither two cores nor a GPU busy.
        seeds: runs of everything; the preset's numbers if not given.

    Returns:
        All records, and the groups' rows.

    Raises:
        ValueError: ``runs.jsonl`` is damaged, ``jobs`` negative, or ``seeds`` less than 1.
        RuntimeError: a run failed.
    """
    if seeds is not None:
        preset = replace(preset, seeds=seeds, other_seeds=seeds)
    folder.mkdir(parents=True, exist_ok=True)
    log = RunLog(folder / 'runs.jsonl')
    rows = {group: group_rows for group, group_rows in plan(preset).items() if group in groups}
    runs = list(dict.fromkeys(r for group in rows.values() for row in group for r in row[2]))
    missing = [run for run in runs if not log.get(**asdict(run))]
    missing.sort(key=lambda run: run.seed)  # stable: every group has something early
    if not missing:
        return log, rows
    root = folder / f'hard_{preset.size}_{preset.images}'
    write_dataset(root, ShapesSpec(preset.images, preset.held_out, preset.size, hard=True))
    jobs = min(jobs or min(8, os.cpu_count() or 1), len(missing))
    with (
        ProcessPoolExecutor(
            jobs,
            multiprocessing.get_context('spawn'),
            _start_worker,
            (folder / 'log.txt', max(1, torch.get_num_threads() // jobs)),
        ) as pool,
        tqdm(
            total=sum(run.work for run in runs),
            initial=sum(run.work for run in runs) - sum(run.work for run in missing),
            bar_format='{percentage:3.0f}% |{bar}| {elapsed} < {remaining}{postfix}',
            postfix=f'{len(runs) - len(missing)} of {len(runs)} runs',
            smoothing=0,  # runs end in pairs
        ) as bar,
    ):
        futures = {pool.submit(train, run, root, configs, folder): run for run in missing}
        try:
            for done, future in enumerate(as_completed(futures), len(runs) - len(missing) + 1):
                run = futures[future]
                try:
                    log.add(**asdict(run), **future.result())
                except Exception as error:
                    raise RuntimeError(
                        f'{run} failed: {error!r}; see {folder / "log.txt"}'
                    ) from error
                bar.set_postfix_str(f'{done} of {len(runs)} runs', refresh=False)
                bar.update(run.work)
        except BaseException:
            # The pool would train all that was submitted before the process may end.
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
    return log, rows


def _start_worker(log: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    sys.stdout = sys.stderr = log.open('a', buffering=1)  # what mmengine and pycocotools print
    # Workers of a killed process would wait for work for ever.
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def train(run: Run, root: Path, configs: Path, folder: Path) -> dict[str, object]:
    """Make one run: its scores in percent, and the seconds it took."""
    start = time.perf_counter()
    cfg = run_config(run, root, configs)
    cfg.work_dir = str(folder / 'work_dirs' / run.name)
    diversity = DiversityRecorder()
    (metrics,) = train_and_score(cfg, *([diversity] if run.task == 'light' else [])).values()
    if run.task == 'mask_rcnn':
        score = {f'{kind} mAP50': 100 * metrics[f'coco/{kind}_mAP_50'] for kind in ('segm', 'bbox')}
    else:
        score = {'mIoU': metrics['mIoU'], 'variant accuracy': metrics['variant']}
    seconds = round(time.perf_counter() - start, 1)
    return dict(score=score, seconds=seconds, diversity=diversity.measured)


def run_config(run: Run, root: Path, configs: Path) -> Config:
    """The config of a run: one of those shipped for drawn data, changed.

    Args:
        run: what to train.
        root: a data set of the hard mode.
        configs: folder of the repository's configs.
    """
    detection = run.task == 'mask_rcnn'
    name = 'mask_rcnn_ivit_shapes.py' if detection else 'upernet_ivit_shapes.py'
    cfg = Config.fromfile(configs / name)
    cfg.experiment_name = run.name  # two runs may begin in the same second
    cfg.log_level = 'WARNING'
    classes = ShapesSpec(hard=True).classes
    model = cfg.model
    indices = model.backbone.get('out_indices', (0, 1, 2, 3))
    model.backbone = dict(PEERS[run.backbone], out_indices=indices)
    if run.backbone == 'iViT-nano':
        options = ('attention', 'landmarks', 'interaction', 'head_dim')
        model.backbone.update({option: getattr(run, option) for option in options})
    if detection:
        model.rpn_head.anchor_generator.scales = [2]  # half of what the ordinary mode's size asks
        model.roi_head.bbox_head.num_classes = model.roi_head.mask_head.num_classes = len(classes)
    else:
        classes = ('background', *classes)
        for head in (model.decode_head, model.auxiliary_head):
            head.num_classes = len(classes)
            head.loss_decode.class_weight = [BACKGROUND_WEIGHT] + [1.0] * (len(classes) - 1)
        cfg.val_evaluator = [cfg.val_evaluator, dict(type='VariantAccuracy')]
    if run.task == 'light':
        # UperNet's pyramid pooling carries context of its own across the image and would hide
        # what the backbone does. This head sees each place by itself.
        model.backbone.arch = TRUNK
        model.decode_head.type = 'SegformerHead'
        del model.decode_head.pool_scales, model.auxiliary_head
    cfg.optim_wrapper.optimizer.lr = LEARNING_RATE
    set_budget(cfg, root, run.seed, run.size, run.batch, run.iterations)
    resize = dict(type='Resize', scale=(run.size, run.size), keep_ratio=True)
    cfg.train_dataloader.dataset.pipeline.insert(2, resize)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)  # the other runs keep cores busy
        loader.dataset.metainfo = dict(classes=classes)
    return cfg


class DiversityRecorder(Hook):
    """How alike heads are before and after training: means over stage 3's layers and some images.

    Attributes:
        measured: by 'before' and 'after', the value of each of DIVERSITY.
    """

    def __init__(self) -> None:
        self.measured: dict[str, dict[str, float]] = {}

    def before_train(self, runner: Runner) -> None:
        self.measured['before'] = self._measure(runner)

    def after_train(self, runner: Runner) -> None:
        self.measured['after'] = self._measure(runner)

    def _measure(self, runner: Runner) -> dict[str, float]:
        images: list[Tensor] = []
        for batch in runner.val_dataloader:
            images += runner.model.data_preprocessor(batch, False)['inputs']
            if len(images) >= DIVERSITY_IMAGES:
                break
        layers = [r for r in head_diversity(runner.model, images) if 'stages.2.' in r.layer]
        return {name: fmean(getattr(layer, name) for layer in layers) for name in DIVERSITY}


@METRICS.register_module()
class VariantAccuracy(BaseMetric):
    """Of the pixels whose object's shape is right, the percentage where the beacon's mark is too.

    For label maps of the hard mode: background, then HARD_CLASSES.
    """

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count the pixels of each sample's maps, (1, H, W)."""
        kinds = len(BEACONS)
        for sample in data_samples:
            predicted = sample['pred_sem_seg']['data'] - 1
            label = sample['gt_sem_seg']['data'].to(predicted) - 1
            is_object = (label >= 0) & (label < kinds * len(HARD_SHAPES))
            shape_right = is_object & (predicted // kinds == label // kinds)
            right = shape_right & (predicted == label)
            self.results.append((shape_right.sum().item(), right.sum().item()))

    def compute_metrics(self, results: list) -> dict[str, float]:
        shapes, variants = map(sum, zip(*results))
        return dict(variant=100 * variants / max(1, shapes))
