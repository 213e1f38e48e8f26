"""A config's model, built, and loaded with the weights of a checkpoint or refused them.

:func:`load_model` gives the model alone. MMEngine's Runner and the inferencers of mmdet and mmseg
build and load theirs by themselves; :func:`read_loadable` goes before them and
:func:`check_weights` behind, so that a checkpoint is refused in the same words everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmivit.apis.config import check_file, check_scope
from mmivit.apis.runner import warn
from mmivit.apis.settings import differing_settings
from mmivit.errors import CheckpointError
from mmivit.models.loading import check_fits
from mmivit.utils.text import listed
from mmivit.weights.checkpoint import (
    dataset_meta,
    find_state_dict,
    is_index,
    is_safetensors,
    naming,
    read_checkpoint,
)


class LoadedModel(NamedTuple):
    """A model in evaluation mode with a checkpoint's weights.

    Attributes:
        dataset_meta: the checkpoint's classes and palette, empty if it has none.
    """

    model: nn.Module
    dataset_meta: dict


def build_model(cfg: Config, device: str = 'cpu') -> nn.Module:
    """A config's model in evaluation mode, its weights random; SyncBN is turned into BN.

    Args:
        cfg: a config of mmdet or mmseg.
        device: where it is made; on 'meta' nothing is computed.

    Raises:
        LaunchError: the config's default_scope is neither mmdet nor mmseg.
    """
    scope = check_scope(cfg)
    with torch.device(device), DefaultScope.overwrite_default_scope(scope):
        # Some constructors change the config they are given.
        model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(cfg.model)))
    model.eval()  # that of mmdet's backbones returns None
    return model


def load_model(cfg: Config, checkpoint: str) -> LoadedModel:
    """A config's model on the CPU with a checkpoint's weights, all of them.

    Args:
        cfg: a config of mmdet or mmseg.
        checkpoint: path of a file that :func:`read_checkpoint` reads.

    Raises:
        LaunchError: there is no such file, or the config's default_scope is neither mmdet nor
            mmseg.
        CheckpointError: the checkpoint is unsafe, unreadable, or of another model.
    """
    check_file(checkpoint, 'checkpoint')
    loaded = read_checkpoint(checkpoint)
    with naming(checkpoint):
        weights, meta = find_state_dict(loaded), dataset_meta(loaded)
    model = build_model(cfg)
    with naming(checkpoint):
        check_fits(model, weights)
    model.load_state_dict(weights, strict=False)
    warn(differing_settings(cfg, checkpoint, loaded))
    return LoadedModel(model, meta)


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
    if '://' not in path:
        check_file(path, what)
    if is_safetensors(path) or is_index(path):
        raise CheckpointError(
            f'{path}: MMEngine loads .pth files alone; safetensors are for conversion and init_cfg'
        )
    return None if '://' in path else read(path)


def check_weights(model: nn.Module, checkpoint: str, loaded: dict | None) -> None:
    """Refuse a checkpoint that MMEngine has loaded into a model, or is about to, if it is not its.

    Args:
        model: as it is, or wrapped for DDP or test-time augmentation.
        checkpoint: its path.
        loaded: what :func:`read_loadable` gave.

    Raises:
        CheckpointError: tensors of the model are missing or of another shape, or under names that
            MMEngine does not know for theirs.
    """
    while hasattr(model, 'module'):
        model = model.module
    if loaded is not None and isinstance(model, nn.Module):  # FlexibleRunner has none yet
        with naming(checkpoint):
            weights = find_state_dict(loaded)
            seen = {str(name).removeprefix('module.') for name in loaded.get('state_dict', loaded)}
            hidden = [name for name in weights if name not in seen]
            if hidden:
                raise CheckpointError(
                    f'MMEngine would not find {listed(hidden)} in it, for what stands around them '
                    f'or before their names: python tools/publish_model.py {checkpoint} NAME.pth '
                    'writes a file without'
                )
            check_fits(model, weights)
