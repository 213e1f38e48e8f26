"""Ablations on the hard drawn data: attentions, interaction, landmarks, heads, tokens, peers.

The peers are trained on photographs as well, where their packages are at hand.

Every run trains from scratch for the same number of images and is scored once, at its end. Beside
mIoU there is the accuracy of the variant: how often, where an object's shape is right, its other
half is, which only the beacon elsewhere in the image tells (mmivit/datasets/shapes.py). Chance is
50 %, and what lies above it came from afar.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import set_random_seed
from torch import Tensor

from mmivit.apis.config import read_config
from mmivit.apis.models import build_model
from mmivit.datasets.shapes import ShapesSpec, write_dataset
from mmivit.datasets.solar_cells import CellsSpec, write_cells
from mmivit.datasets.tree_crowns import TREE_CLASSES, TreesSpec, write_trees
from mmivit.experiments.classification import (
    BATCH,
    PooledClassifier,
    count_classes,
    held_out_accuracy,
    train_classifier,
)
from mmivit.experiments.measures import DiversityRecorder
from mmivit.experiments.runs import (
    BaseRun,
    RunLog,
    boxes_only,
    make_runs,
    set_budget,
    train_and_score,
)
from mmivit.models.attention import ATTENTIONS, INTERACTIONS
from mmivit.weights.checkpoint import write_checkpoint
from mmivit.weights.converters import convert
from mmivit.weights.sources import fetch

# Compared within iViT: nano's widths, with half of its convolution blocks. They reach about 50
# pixels, so that over most of an image only attention carries anything.
TRUNK = dict(depths=(1, 1, 4, 1), widths=(32, 64, 128, 256))
LEARNING_RATE = 2e-3  # AdamW, for every model
CELLS = CellsSpec(size=96)
TREES = TreesSpec(size=200)  # crowns are 20 to 60 pixels wide
BACKGROUND_WEIGHT = 0.2  # in the segmentation loss: four fifths of the pixels, and no question
HEAD_DIMS = (64, 32, 16, 8)  # 2, 4, 8 and 16 heads in stage 3
# All with nano's four widths, so that necks and heads are the same.
LAST_WIDTH = 256
MHSA_FIRST = 'iViT-nano, MHSA first'  # half of the iterations, the rest from converted weights
PEERS = {
    'iViT-nano': dict(type='mmivit.IViT', arch='nano'),
    MHSA_FIRST: dict(type='mmivit.IViT', arch='nano'),
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
# Scores by task: the metric, what it is called, and what makes it percent.
_SEGMENTATION = {'mIoU': ('mIoU', 1), 'variant': ('variant accuracy', 1)}
SCORES = dict(
    light=_SEGMENTATION,
    upernet=_SEGMENTATION,
    mask_rcnn={f'coco/{kind}_mAP_50': (f'{kind} mAP50', 100) for kind in ('segm', 'bbox')},
    trees={'coco/bbox_mAP_50': ('trees, bbox mAP50', 100)},
)
# About how long they take, per pixel. The last two are of photographs.
TASKS = dict(light=1, upernet=2, mask_rcnn=4, cells=1, trees=3)


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
        cells, trees: how the peers' photographs are cut and split.
        trees_size: side of the trees' tiles as the network sees them, pixels.
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
    cells: CellsSpec = CELLS
    trees: TreesSpec = TREES
    trees_size: int = 160

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
class Run(BaseRun):
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
    def work(self) -> int:
        return TASKS[self.task] * self.size**2 * self.iterations * self.batch


# A row of a group's table: its name, the number that is varied if any, and the runs behind it.
Row = tuple[str, 'int | None', list[Run]]


def plan(preset: Preset) -> dict[str, list[Row]]:
    """Rows of every group; runs that groups share are equal."""
    base = Run(preset.size, preset.iterations, preset.batch)
    # The landmarks' grid can't exceed the tokens': only large images tell 14 from 7.
    large = replace(base, size=2 * preset.size)
    peer = replace(base, iterations=preset.peer_iterations)
    photographs = [
        replace(peer, task='cells', size=preset.cells.size, batch=BATCH),
        replace(peer, task='trees', size=preset.trees_size),
    ]
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
        'photographs': [
            (name, None, [replace(run, backbone=name) for run in photographs]) for name in PEERS
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
    groups: Sequence[str],
    jobs: int = 0,
    seeds: int | None = None,
    wheels: Path | None = None,
) -> tuple[RunLog, dict[str, list[Row]]]:
    """Train what is not in ``folder/runs.jsonl`` yet, several runs at a time.

    Args:
        folder: data, logs and ``runs.jsonl``, one record per finished run.
        configs: folder of the repository's configs.
        preset: how much is trained.
        groups: which of GROUPS.
        jobs: as in :func:`mmivit.experiments.runs.make_runs`.
        seeds: runs of everything; the preset's numbers if not given.
        wheels: folder where the wheels of ``elpv-dataset`` and ``deepforest`` were unpacked, for
            the group 'photographs'.

    Returns:
        All records, and the groups' rows.

    Raises:
        ValueError: ``runs.jsonl`` is damaged, ``jobs`` negative, ``seeds`` less than 1, or the
            wheels are missing.
        OSError: the wheels' files are not there.
        RuntimeError: a run failed.
    """
    if seeds is not None:
        preset = replace(preset, seeds=seeds, other_seeds=seeds)
    folder.mkdir(parents=True, exist_ok=True)
    log = RunLog(folder / 'runs.jsonl')
    rows = {group: group_rows for group, group_rows in plan(preset).items() if group in groups}
    runs = list(dict.fromkeys(r for group in rows.values() for row in group for r in row[2]))
    runs.sort(key=lambda run: run.seed)  # stable: every group has something early
    drawn = folder / f'hard_{preset.size}_{preset.images}'
    write_dataset(drawn, ShapesSpec(preset.images, preset.held_out, preset.size, hard=True))
    roots = dict.fromkeys(TASKS, drawn) | dict(cells=folder / 'cells', trees=folder / 'trees')
    if 'photographs' in rows:
        if wheels is None:
            raise ValueError("the group 'photographs' needs the folder of the unpacked wheels")
        write_cells(wheels, roots['cells'], preset.cells)
        write_trees(wheels, roots['trees'], preset.trees)
    make_runs(runs, partial(train, roots=roots, configs=configs, folder=folder), log, jobs)
    return log, rows


def train(run: Run, roots: dict[str, Path], configs: Path, folder: Path) -> dict[str, object]:
    """Make one run: its scores in percent, and the seconds it took.

    Args:
        run: what to train.
        roots: folder of the data set, by task.
        configs: folder of the repository's configs.
        folder: what the run writes goes to ``work_dirs`` in it.
    """
    start = time.perf_counter()
    root, work_dir = roots[run.task], folder / 'work_dirs' / run.name
    diversity = DiversityRecorder()
    if run.task == 'cells':
        score = {'cells, accuracy': _classify(run, root)}
    else:
        weights = None
        if run.backbone == MHSA_FIRST:
            run = replace(run, iterations=run.iterations // 2)
            first = replace(run, attention='mhsa')
            weights = _train_first(first, root, configs, work_dir / 'mhsa')
        cfg = run_config(run, root, configs)
        cfg.work_dir, cfg.load_from = str(work_dir), weights
        (metrics,) = train_and_score(cfg, *([diversity] if run.task == 'light' else [])).values()
        score = {name: factor * metrics[key] for key, (name, factor) in SCORES[run.task].items()}
    seconds = round(time.perf_counter() - start, 1)
    return dict(score=score, seconds=seconds, diversity=diversity.measured)


def _train_first(run: Run, root: Path, configs: Path, folder: Path) -> str:
    """Train with MHSA; a file with all weights, those of the backbone converted to iMHSA."""
    cfg = run_config(run, root, configs)
    cfg.work_dir = str(folder)
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', by_epoch=False, interval=run.iterations, save_optimizer=False
    )
    train_and_score(cfg)
    state = fetch(f'{cfg.work_dir}/iter_{run.iterations}.pth')
    path = Path(cfg.work_dir, 'imhsa.pth')
    write_checkpoint(path, _convert_backbone(state), {}, force=True)
    return str(path)


def _classify(run: Run, root: Path) -> float:
    """Train a peer to tell solar cells; its held-out accuracy, percent."""
    iterations, state = run.iterations, None
    if run.backbone == MHSA_FIRST:
        iterations //= 2
        first = _build_classifier(replace(run, attention='mhsa'), root)
        train_classifier(first, root, run.seed, iterations)
        state = _convert_backbone(first.state_dict())
    model = _build_classifier(run, root)
    if state:
        model.load_state_dict(state, strict=False)  # nothing converted has interactions
    train_classifier(model, root, run.seed, iterations)
    return held_out_accuracy(model, root)


def _build_classifier(run: Run, root: Path) -> PooledClassifier:
    set_random_seed(run.seed)
    backbone = build_model(Config(dict(default_scope='mmdet', model=peer_backbone(run))))
    backbone.init_weights()
    return PooledClassifier(backbone, LAST_WIDTH, count_classes(root))


def _convert_backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights with its backbone's MHSA converted to iMHSA."""
    of_backbone = {name: x for name, x in state.items() if name.startswith('backbone.')}
    converted, _ = convert(of_backbone, attention='imhsa')
    rest = {name: x for name, x in state.items() if name not in of_backbone}
    return {f'backbone.{name}': x for name, x in converted.items()} | rest


def peer_backbone(run: Run) -> dict:
    """A run's backbone, as configs have it."""
    backbone = dict(PEERS[run.backbone])
    if backbone['type'] == 'mmivit.IViT':
        options = ('attention', 'landmarks', 'interaction', 'head_dim')
        backbone.update({option: getattr(run, option) for option in options})
    return backbone


def run_config(run: Run, root: Path, configs: Path) -> Config:
    """The config of a run: one of those shipped for drawn data, changed.

    Args:
        run: what to train, any task but 'cells'.
        root: its data set; of the hard mode, unless it is the trees'.
        configs: folder of the repository's configs.
    """
    trees, detection = run.task == 'trees', run.task in ('mask_rcnn', 'trees')
    name = 'mask_rcnn_ivit_shapes.py' if detection else 'upernet_ivit_shapes.py'
    cfg = read_config(str(configs / name))
    cfg.experiment_name = run.name  # two runs may begin in the same second
    cfg.log_level = 'WARNING'
    classes = TREE_CLASSES if trees else ShapesSpec(hard=True).classes
    model = cfg.model
    indices = model.backbone.get('out_indices', (0, 1, 2, 3))
    model.backbone = dict(peer_backbone(run), out_indices=indices)
    if trees:
        boxes_only(cfg)
        model.roi_head.bbox_head.num_classes = len(classes)
    elif detection:
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
