"""Training and testing from a config: what is checked and set before MMEngine's Runner starts."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from mmivit.engine.safeguards import check_whole, latest_checkpoint
from mmivit.errors import CheckpointError, LaunchError, TrainingError
from mmivit.models.ivit import IViT
from mmivit.models.loading import check_fits
from mmivit.weights.checkpoint import find_state_dict, naming, read_checkpoint

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # full, quota, a limit on the size of files


def train(
    config: str,
    work_dir: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    resume: str | None = None,
    cfg_options: dict | None = None,
    launcher: str = 'none',
) -> None:
    """Train the model of a config.

    Args:
        config: path of an mmdet or mmseg config.
        work_dir: folder of logs and checkpoints; ``work_dirs/<config's name>`` if not given
            here or in the config.
        amp: mixed precision.
        auto_scale_lr: scale the learning rate from the config's base batch to the actual one.
        resume: a checkpoint, or 'auto' for the latest whole one in ``work_dir``; training starts
            from the beginning if it holds none.
        cfg_options: what to override in the config, by dotted key.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.

    Raises:
        LaunchError: data, checkpoint or a setting is missing or does not fit.
        CheckpointError: the checkpoint is unsafe, unreadable, or of something else.
        TrainingError: the run had to stop: a loss is not finite, the disk is full.
    """
    cfg = read_config(config, work_dir, cfg_options, launcher)
    check_channels(cfg)
    check_data(cfg, ('train', 'val'))
    if amp:
        if not torch.cuda.is_available():
            raise LaunchError('--amp needs a CUDA device and torch sees none; leave it out.')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise LaunchError(
                f'--auto-scale-lr: {config} does not say for which total batch its learning rate '
                'is meant. Add: auto_scale_lr = dict(enable=True, base_batch_size=16)'
            )
        cfg.auto_scale_lr.enable = True
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    if cfg.get('auto_scale_lr', {}).get('enable') and accumulated > 1:
        cfg.auto_scale_lr.base_batch_size /= accumulated  # MMEngine leaves it out of the batch
    _choose_checkpoint(cfg, resume)
    runner = build_runner(cfg)
    if resume not in (None, 'auto'):
        _check_fits(runner, resume, read_loadable(resume, '--resume'))
    warn_about_batch_size(runner)
    try:
        runner.train()
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        free = shutil.disk_usage(cfg.work_dir).free // 2**20
        raise TrainingError(
            f'The disk is full: {error}\n  {free} MiB are free in {cfg.work_dir}. The last whole '
            f'checkpoint is {latest_checkpoint(cfg.work_dir) or "none"}.\n'
            '  Make room, then go on with the same command and --resume.'
        ) from error


def evaluate(
    config: str,
    checkpoint: str,
    work_dir: str | None = None,
    out: str | None = None,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2,
    tta: bool = False,
    cfg_options: dict | None = None,
    launcher: str = 'none',
) -> dict[str, float]:
    """Evaluate a checkpoint on the test set of a config.

    Args:
        config: path of an mmdet or mmseg config.
        checkpoint: path of the weights.
        work_dir: folder of logs and metrics, as in :func:`train`.
        out: where predictions are kept: a .pkl file in detection, a folder in segmentation.
        show: show each picture in a window.
        show_dir: folder below the work dir for pictures.
        wait_time: seconds between pictures.
        tta: test-time augmentation, as the config's ``tta_model`` and ``tta_pipeline`` say.
        cfg_options: what to override in the config, by dotted key.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.

    Returns:
        The metrics, by name.

    Raises:
        LaunchError, CheckpointError: as in :func:`train`.
    """
    cfg = read_config(config, work_dir, cfg_options, launcher)
    if out and cfg.default_scope == 'mmdet' and not out.endswith(('.pkl', '.pickle')):
        raise LaunchError(f'--out {out}: detections are written to a .pkl file')
    check_channels(cfg)
    check_data(cfg, ('test',))
    cfg.load_from = checkpoint
    loaded = read_loadable(checkpoint, 'checkpoint')
    if show or show_dir:
        hook = cfg.default_hooks.visualization
        hook.update(draw=True, show=show, wait_time=wait_time)
        if show_dir:
            if cfg.default_scope == 'mmdet':
                hook.test_out_dir = show_dir
            else:
                cfg.visualizer.save_dir = show_dir
    if tta:
        if not cfg.get('tta_model') or not cfg.get('tta_pipeline'):
            raise LaunchError(f'--tta: {config} defines no tta_model and tta_pipeline')
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    if out and cfg.default_scope == 'mmseg':
        evaluators = cfg.test_evaluator
        for evaluator in [evaluators] if isinstance(evaluators, dict) else evaluators:
            if 'IoUMetric' in str(evaluator.type):  # the one that writes label maps
                evaluator.update(output_dir=out, keep_results=True)
    runner = build_runner(cfg)
    _check_fits(runner, checkpoint, loaded)
    if out and cfg.default_scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=out))
    return runner.test()


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check that the annotation files and image folders a config names are there.

    Args:
        cfg: the config.
        splits: which of 'train', 'val', 'test' will be read.

    Raises:
        LaunchError: names the missing paths, the expected layout and the ways on.
    """
    expected: dict[str, str] = {}  # path -> data root
    for split in splits:
        for dataset in innermost_datasets(cfg.get(f'{split}_dataloader')):
            root = dataset.get('data_root') or ''
            parts = [dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()]
            for part in filter(None, parts):
                path = os.path.join(root, part)
                if '://' not in path:
                    expected[path] = root
    missing = [path for path in expected if not os.path.exists(path)]
    if not missing:
        return
    root = expected[missing[0]].rstrip('/') or os.path.dirname(missing[0])
    lines = [
        f'The data of this config is not there. Missing, seen from {os.getcwd()}:',
        *(f'    {path}' for path in missing),
        'Expected layout:',
        *(f'    {path}' for path in expected),
        'Two ways on:',
        '  1. put there what is missing'
        if os.path.lexists(root)
        else f'  1. link the data:          mkdir -p {os.path.dirname(root) or "."} && '
        f'ln -s /where/it/is {root}',
        '  2. use the built-in set:   python tools/make_shapes.py data/shapes && '
        'python tools/train.py configs/mask_rcnn_ivit_shapes.py',
        'Once the data is there, python tools/check_data.py CONFIG looks for faults in it.',
    ]
    raise LaunchError('\n'.join(lines))


def check_channels(cfg: Config) -> None:
    """Check that what follows an iViT backbone expects the channels it returns.

    Raises:
        LaunchError: prints the list to paste.
    """
    model = cfg.get('model', {})
    backbone = model.get('backbone') or {}
    if str(backbone.get('type')).rpartition('.')[2] != 'IViT':
        return
    arguments = {
        key: value for key, value in backbone.items() if key not in ('type', '_scope_', 'init_cfg')
    }
    try:
        with torch.device('meta'):
            channels = IViT(**arguments).out_channels
    except (TypeError, ValueError) as error:
        raise LaunchError(f'model.backbone: {error}') from error
    neck = model.get('neck')
    wanted = neck.get('in_channels') if isinstance(neck, dict) else None
    if isinstance(wanted, (list, tuple)) and list(wanted) != channels:
        raise LaunchError(
            f'model.neck.in_channels is {list(wanted)}, but the backbone returns {len(channels)} '
            f'maps of {channels} channels. Paste:\n    neck=dict(in_channels={channels})'
        )
    if neck is None:
        _check_segmentation_heads(model, channels)


def _check_segmentation_heads(model: dict, channels: list[int]) -> None:
    """mmseg's heads pick maps of the backbone by ``in_index``."""
    for name in ('decode_head', 'auxiliary_head'):
        heads = model.get(name) or []
        for head in [heads] if isinstance(heads, dict) else heads:
            wanted = head.get('in_channels')
            if wanted is None:
                continue
            # Some heads take all maps and know no in_index; those that do default to the last.
            every = list(range(len(channels)))
            index = head.get('in_index', -1 if isinstance(wanted, int) else every)
            indices = [index] if isinstance(index, int) else list(index)
            if any(not -len(channels) <= i < len(channels) for i in indices):
                raise LaunchError(
                    f'model.{name}.in_index is {index}, but the backbone returns '
                    f'{len(channels)} maps'
                )
            given = [channels[i] for i in indices]
            if ([wanted] if isinstance(wanted, int) else list(wanted)) != given:
                paste = given[0] if isinstance(index, int) else given
                raise LaunchError(
                    f'model.{name}.in_channels is {wanted}, but at in_index {index} the backbone '
                    f'returns {paste}. Paste:\n    {name}=dict(in_channels={paste})'
                )


def warn_about_batch_size(runner: Runner) -> None:
    """Warn when the learning rate is meant for another total batch than this run's."""
    setting = runner.cfg.get('auto_scale_lr') or {}
    base = setting.get('base_batch_size')
    batch = runner.cfg.train_dataloader.get('batch_size')
    if base is None or batch is None or setting.get('enable'):
        return
    accumulated = runner.cfg.optim_wrapper.get('accumulative_counts', 1)
    total = runner.world_size * batch * accumulated
    if total != base:
        print_log(
            f'Total batch is {total} ({runner.world_size} processes x {batch} images'
            + (f' x {accumulated} accumulated' if accumulated > 1 else '')
            + f'), the learning rate is meant for {base}. Pass --auto-scale-lr to scale it, or '
            'expect a lower score.',
            logger='current',
            level=logging.WARNING,
        )


def read_config(
    path: str,
    work_dir: str | None = None,
    cfg_options: dict | None = None,
    launcher: str = 'none',
) -> Config:
    """The config at a path, overridden; the arguments are those of :func:`train`.

    Raises:
        LaunchError: there is no such file, it is no config, or an option does not fit it.
    """
    _existing_file(path, 'config')
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program
        reason = f'{type(error).__name__}: {error}'
        raise LaunchError(f'{path} cannot be read as a config: {reason}') from error
    if cfg_options:
        try:
            cfg.merge_from_dict(cfg_options)
        except (KeyError, TypeError, ValueError) as error:
            raise LaunchError(f'--cfg-options does not fit {path}: {error}') from error
    cfg.launcher = launcher
    if work_dir:
        cfg.work_dir = work_dir
    elif not cfg.get('work_dir'):
        cfg.work_dir = os.path.join('work_dirs', Path(path).stem)
    return cfg


def build_runner(cfg: Config) -> Runner:
    """MMEngine's Runner of a config; it turns SyncBN into BN when alone."""
    if cfg.get('launcher') == 'pytorch' and not torch.cuda.is_available():
        # MMEngine gives every process a CUDA device; processes on CPUs are ours to set up.
        torch.distributed.init_process_group('gloo')
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def _existing_file(path: str, what: str) -> None:
    if '://' not in path and not os.path.isfile(path):
        raise LaunchError(f'{what}: no file {path}, seen from {os.getcwd()}')


def _choose_checkpoint(cfg: Config, resume: str | None) -> None:
    """Set which checkpoint a run goes on from or starts with, and read it before it is built."""
    if resume not in (None, 'auto'):
        _existing_file(resume, '--resume')
        cfg.resume, cfg.load_from = True, resume
    if resume == 'auto' or (cfg.get('resume') and not cfg.get('load_from')):
        latest = latest_checkpoint(cfg.work_dir)
        cfg.resume = latest is not None
        if latest:
            cfg.load_from = latest
            return
        print_log(f'Nothing to resume in {cfg.work_dir}: a new run starts.', logger='current')
    if cfg.get('load_from'):
        what, read = ('--resume', check_whole) if cfg.resume else ('load_from', read_checkpoint)
        read_loadable(cfg.load_from, what, read)


def read_loadable(
    path: str, what: str, read: Callable[[str], dict | None] = read_checkpoint
) -> dict | None:
    """Read a checkpoint before MMEngine loads it; None of a URL, which it fetches by itself.

    Args:
        path: of the file.
        what: the option that names it.
        read: reads it, or checks it.

    Raises:
        LaunchError: there is no such file.
        CheckpointError: it is unsafe, unreadable, or of a format that MMEngine does not load.
    """
    _existing_file(path, what)
    if path.endswith('.safetensors'):
        raise CheckpointError(
            f'{path}: MMEngine loads .pth files alone; safetensors are for conversion and init_cfg'
        )
    return None if '://' in path else read(path)


def _check_fits(runner: Runner, checkpoint: str, loaded: dict | None) -> None:
    model = runner.model
    while hasattr(model, 'module'):  # of DDP, of test-time augmentation
        model = model.module
    if loaded is not None and isinstance(model, nn.Module):  # FlexibleRunner has none yet
        with naming(checkpoint):
            check_fits(model, find_state_dict(loaded))


def innermost_datasets(node: dict | list | None) -> Iterator[dict]:
    """Every innermost data set of a dataloader's config, through wrappers of any depth."""
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from innermost_datasets(item)
    elif isinstance(node, dict):
        inner = node.get('dataset') or node.get('datasets')
        if inner:
            yield from innermost_datasets(inner)
        else:
            yield node
