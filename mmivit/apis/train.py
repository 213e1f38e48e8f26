"""Training from a config: what is checked and set before MMEngine's Runner starts."""

from __future__ import annotations

import errno
import logging
import shutil

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmivit.apis.check_data import check_before_run
from mmivit.apis.config import check_channels, check_paths, read_config
from mmivit.apis.models import check_weights, read_loadable
from mmivit.apis.runner import build_runner, warn
from mmivit.engine import ScheduleHook
from mmivit.engine.resume import check_whole, latest_checkpoint
from mmivit.errors import LaunchError, TrainingError
from mmivit.weights.checkpoint import read_checkpoint

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
    check_paths(cfg, ('train', 'val'))
    doubts = check_before_run(cfg, ('train', 'val'))
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
    warn(doubts)
    if cfg.get('resume') and cfg.get('load_from'):
        check_weights(runner.model, cfg.load_from, read_loadable(cfg.load_from, '--resume'))
    runner.register_hook(ScheduleHook())
    warn_about_batch_size(runner)
    check_steps(runner)
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


def check_steps(runner: Runner) -> None:
    """Check that an epoch has steps.

    Raises:
        LaunchError: the images are fewer than a step takes, and the rest of an epoch is left out.
    """
    loader = runner.train_dataloader
    if not len(loader):
        raise LaunchError(
            f'{len(loader.dataset)} images reach training, and a step takes '
            f'{loader.batch_sampler.batch_size}: set train_dataloader.batch_size lower, or look '
            'what leaves images out: python tools/check_data.py CONFIG'
        )


def _choose_checkpoint(cfg: Config, resume: str | None) -> None:
    """Set which checkpoint a run goes on from or starts with, and read it before it is built."""
    if resume not in (None, 'auto'):
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
