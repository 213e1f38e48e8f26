"""A word on the optimiser, whichever tool builds it: the backbone itself never sees it."""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakSet

import torch
from mmengine.logging import print_log
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

_watched: WeakSet[nn.Module] = WeakSet()  # models that no optimiser has trained yet


def watch_optimiser(model: nn.Module) -> None:
    """Warn once, before its first step, if a model is trained by SGD, as stock ResNets are."""
    _watched.add(model)


def _look(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if not _watched:
        return
    groups = {id(p): group for group in optimizer.param_groups for p in group['params']}
    for model in list(_watched):
        group = next((groups[id(p)] for p in model.parameters() if id(p) in groups), None)
        if group is None:
            continue
        _watched.discard(model)
        if isinstance(optimizer, torch.optim.SGD):
            print_log(
                f'{type(model).__name__} is trained by SGD at a rate of {group["lr"]:g}, as stock '
                'configs for ResNets are. Train it with AdamW, without weight decay on norms and '
                'the interaction: the lines to paste are in docs/pipelines.md, The optimiser.',
                logger='current',
                level=logging.WARNING,
            )


# For good, since a hook can't be taken away while it runs; it looks no further than `_watched`.
register_optimizer_step_pre_hook(_look)
