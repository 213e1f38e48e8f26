"""A config as it is asked for: read, overridden, and checked before anything is built from it."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS, RUNNERS
from mmengine.runner import Runner

from mmivit.errors import LaunchError
from mmivit.models.ivit import IViT
from mmivit.registry import class_of, derives_from
from mmivit.utils.arrays import plain
from mmivit.utils.text import listed

# What is read of a config besides the arguments of its Runner.
READ_BESIDES = frozenset(
    (
        'runner_type',
        'model_wrapper_cfg',
        'find_unused_parameters',
        'sync_bn',
        'compile',
        'activation_checkpointing',
        'efficient_conv_bn_eval',
        'tta_model',
        'tta_pipeline',
    )
)


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
    plain(cfg._cfg_dict)  # mmdet and mmseg want palettes as lists, and arrays cannot be dumped
    if cfg_options:
        for key in cfg_options:
            _warn_if_unread(cfg, key)
        try:
            cfg.merge_from_dict(cfg_options)
        except (KeyError, TypeError, ValueError) as error:
            raise LaunchError(f'--cfg-options does not fit {path}: {error}') from error
    # Pure Python configs import their classes and name no scope.
    package = None if cfg.get('default_scope') else _package(cfg)
    if package:
        cfg.default_scope = package
    cfg.launcher = launcher
    if work_dir:
        cfg.work_dir = work_dir
    elif not cfg.get('work_dir'):
        cfg.work_dir = os.path.join('work_dirs', Path(path).stem)
    return cfg


def _warn_if_unread(cfg: Config, key: str) -> None:
    """Warn of an option for a variable of the config, which has been used when options are merged.

    Args:
        cfg: not overridden yet.
        key: of the option, dotted.
    """
    runners = [Runner, class_of(RUNNERS, dict(type=cfg.get('runner_type')), None)]
    read = READ_BESIDES.union(*(inspect.signature(runner).parameters for runner in runners))
    variable, dot, rest = key.partition('.')
    if variable in read:
        return
    text = f'--cfg-options {key}: neither MMEngine nor mmivit reads {variable}'
    parts = {name: part for name, part in cfg.items() if name in read}
    holding = list(_holding(parts, variable, cfg.get(variable)))
    if holding:
        text += ', whose value the config has used already. Set it where it stands: ' + listed(
            [f'{path}{dot}{rest}' for path in holding]
        )
    print_log(text, logger='current', level=logging.WARNING)


def _holding(
    node: dict | list | tuple, variable: str, value: object, path: str = ''
) -> Iterator[str]:
    """Where the value of a variable stands in a config: under its name or, no number, any other."""
    for key, part in node.items() if isinstance(node, dict) else enumerate(node):
        begins = isinstance(value, str) and '/' in value and str(part).startswith(value)
        equal = type(part) is type(value) and part == value
        if begins or (equal and (key == variable or isinstance(value, (str, list, tuple, dict)))):
            yield f'{path}{key}'
        elif isinstance(part, (dict, list, tuple)):
            yield from _holding(part, variable, value, f'{path}{key}.')


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
    scope = _package(cfg) or cfg.get('default_scope')
    if scope not in ('mmdet', 'mmseg'):
        raise LaunchError(
            f'default_scope is {scope!r}, and the model none of either; it must be mmdet or mmseg'
        )
    return scope


def _package(cfg: Config) -> str | None:
    """The package of a config's model by its class: 'mmdet', 'mmseg', or None where of neither."""
    kind = class_of(MODELS, cfg.get('model') or {}, cfg.get('default_scope'))
    for package, base in (('mmdet', 'BaseDetector'), ('mmseg', 'BaseSegmentor')):
        if derives_from(kind, f'{package}.models', base):
            return package
    return None


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


def tested_dataset(cfg: Config | dict) -> dict:
    """The config of the data set that is tested, the first of several; empty if there is none."""
    return next(innermost_datasets(cfg.get('test_dataloader')), {})


def set_test_data(cfg: Config) -> None:
    """Let a config that tests nothing load images as it does for validation.

    Raises:
        LaunchError: it has no data for that either.
    """
    if not cfg.get('test_dataloader'):
        if not cfg.get('val_dataloader'):
            raise LaunchError(
                'the config has neither test_dataloader nor val_dataloader, by whose pipeline '
                'images are loaded'
            )
        cfg.test_dataloader = cfg.val_dataloader


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

    And, of any backbone's, that a segmentor's head with a single channel tells two classes apart.

    Raises:
        LaunchError: prints what to paste.
    """
    scope = cfg.get('default_scope')
    for path, model in _models(cfg.get('model'), 'model'):
        kind = class_of(MODELS, model['backbone'], scope)
        if issubclass(kind, IViT):
            _check_channels(path, model, kind)
        _check_single_channel(path, model, scope)


def _models(node: object, path: str) -> Iterator[tuple[str, dict]]:
    """Every part of a model that has a backbone, within wrappers of any depth, and its path."""
    if isinstance(node, dict):
        if isinstance(node.get('backbone'), dict):
            yield path, node
        for key, value in node.items():
            yield from _models(value, f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _models(value, f'{path}.{index}')


def _check_channels(path: str, model: dict, kind: type[IViT]) -> None:
    arguments = {
        key: value
        for key, value in model['backbone'].items()
        if key not in ('type', '_scope_', 'init_cfg')
    }
    try:
        with torch.device('meta'):
            channels = kind(**arguments).out_channels
    except (TypeError, ValueError) as error:
        raise LaunchError(f'{path}.backbone: {error}') from error
    neck = model.get('neck')
    wanted = neck.get('in_channels') if isinstance(neck, dict) else None
    if isinstance(wanted, (list, tuple)) and list(wanted) != channels:
        raise LaunchError(
            f'{path}.neck.in_channels is {list(wanted)}, but the backbone returns {len(channels)} '
            f'maps of {channels} channels. Paste:\n    neck=dict(in_channels={channels})'
        )
    if neck is None:
        _check_segmentation_heads(path, model, channels)


def _check_segmentation_heads(path: str, model: dict, channels: list[int]) -> None:
    """mmseg's heads pick maps of the backbone by ``in_index``."""
    for name, head in _segmentation_heads(model):
        wanted = head.get('in_channels')
        if wanted is None:
            continue
        # Some heads take all maps and know no in_index; those that do default to the last.
        every = list(range(len(channels)))
        index = head.get('in_index', -1 if isinstance(wanted, int) else every)
        indices = [index] if isinstance(index, int) else list(index)
        if any(not -len(channels) <= i < len(channels) for i in indices):
            raise LaunchError(
                f'{path}.{name}.in_index is {index}, but the backbone returns {len(channels)} maps'
            )
        given = [channels[i] for i in indices]
        if ([wanted] if isinstance(wanted, int) else list(wanted)) != given:
            paste = given[0] if isinstance(index, int) else given
            raise LaunchError(
                f'{path}.{name}.in_channels is {wanted}, but at in_index {index} the backbone '
                f'returns {paste}. Paste:\n    {name}=dict(in_channels={paste})'
            )


def _check_single_channel(path: str, model: dict, scope: str | None) -> None:
    """By mmseg's losses and labels a single channel is the second of two classes."""
    for name, head in _segmentation_heads(model):
        classes = head.get('num_classes')
        if head.get('out_channels', classes) != 1 or not derives_from(
            class_of(MODELS, head, scope), 'mmseg.models.decode_heads.decode_head', 'BaseDecodeHead'
        ):
            continue
        losses = head.get('loss_decode') or dict(type='mmseg.CrossEntropyLoss')
        softmax = any(
            derives_from(class_of(MODELS, loss, scope), 'mmseg.models', 'CrossEntropyLoss')
            and not loss.get('use_sigmoid')
            for loss in ([losses] if isinstance(losses, dict) else losses)
        )
        if classes == 1 or softmax:
            raise LaunchError(
                f'{path}.{name} has one channel for num_classes={classes}'
                f'{" and a loss by softmax" if softmax else ""}: mmseg takes one channel for the '
                "second of two classes, by a sigmoid. Name both, classes=('background', ...), "
                f'labelled 0 and 1, and paste:\n    {name}=dict(num_classes=2, out_channels=1, '
                "loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))"
            )


def _segmentation_heads(model: dict) -> Iterator[tuple[str, dict]]:
    """The heads of a segmentor, and the names they go by."""
    for name in ('decode_head', 'auxiliary_head'):
        heads = model.get(name) or []
        yield from ((name, head) for head in ([heads] if isinstance(heads, dict) else heads))
