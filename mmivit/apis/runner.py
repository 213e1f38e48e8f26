"""MMEngine's Runner of a config, on one process or on several."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

# Settings of a loader's workers, at which torch raises where there are none.
WORKERS_ALONE = ('persistent_workers', 'prefetch_factor', 'timeout', 'multiprocessing_context')


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
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        for name in WORKERS_ALONE if loader and not loader.get('num_workers') else ():
            loader.pop(name, None)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def warn(texts: Iterable[str]) -> None:
    """Log warnings where the run's log is kept, which exists once its Runner is built."""
    for text in texts:
        print_log(text, logger='current', level=logging.WARNING)
