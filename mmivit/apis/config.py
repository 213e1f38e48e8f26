"""A config as it is asked for: read, overridden, and checked before anything is built from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config

from mmivit.errors import LaunchError
from mmivit.models.ivit import IViT


def read_config(
    path: str,
    work_dir: str | None = None,
    cfg_options: dict | None = None,
    launcher: str = 'none',
) -> Config:
    """The config at a path, overridden.

    Args:
        path: of an mmdet or mmseg config.
        work_dir: folder of logs and checkpoints; ``work_dirs/<config's name>`` if not given here
            or in the config.
        cfg_options: what to override in the config, by dotted key.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.

    Raises:
        LaunchError: there is no such file, it is no config, or an option does not fit it.
    """
    check_file(path, 'config')
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


def check_file(path: str, what: str) -> None:
    """Check that a file is there.

    Args:
        path: of the file.
        what: the option or setting that names it.

    Raises:
        LaunchError: there is no such file.
    """
    if not os.path.isfile(path):
        raise LaunchError(f'{what}: no file {path}, seen from {os.getcwd()}')


def check_scope(cfg: Config) -> str:
    """The package whose models a config's are: 'mmdet' or 'mmseg'.

    Raises:
        LaunchError: it is neither.
    """
    scope = cfg.get('default_scope')
    if scope not in ('mmdet', 'mmseg'):
        raise LaunchError(f'default_scope is {scope!r}; it must be mmdet or mmseg')
    return scope


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


def tested_dataset(cfg: Config) -> dict:
    """The config of the data set that is tested, the first of several; empty if there is none."""
    return next(innermost_datasets(cfg.get('test_dataloader')), {})


def innermost_evaluators(node: dict | list | None) -> Iterator[dict]:
    """Every metric of an evaluator's config, alone, in a list or in an evaluator of several."""
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from innermost_evaluators(item)
    elif isinstance(node, dict):
        if node.get('metrics'):
            yield from innermost_evaluators(node['metrics'])
        elif 'type' in node:
            yield node


def check_paths(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check that the files and folders of data sets and evaluators that a config names are there.

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
        for split in splits:
            _check_evaluator_paths(cfg, split)
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


def _check_evaluator_paths(cfg: Config, split: str) -> None:
    """An evaluator's file is named apart from the data set's, and forgotten when that changes."""
    for evaluator in innermost_evaluators(cfg.get(f'{split}_evaluator')):
        path = evaluator.get('ann_file')
        if path and '://' not in path and not os.path.exists(path):
            files = [
                os.path.join(dataset.get('data_root') or '', dataset['ann_file'])
                for dataset in innermost_datasets(cfg.get(f'{split}_dataloader'))
                if dataset.get('ann_file')
            ]
            raise LaunchError(
                f'{split}_evaluator.ann_file: no file {path}, seen from {os.getcwd()}; the data '
                f'is read from {", ".join(files) or "folders"}'
            )


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
