"""How a config's test pipeline makes of a file what its graph takes, for the graph's metadata.

:mod:`mmivit.export.runtime` follows it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from mmcv.transforms import BaseTransform, LoadAnnotations, LoadImageFromFile
from mmengine.config import Config
from mmengine.registry import TRANSFORMS

from mmivit.apis.config import tested_dataset
from mmivit.datasets.loaders import build, decodes_as_stock, find_loaders, loading
from mmivit.registry import class_of

STOCK = ('mmcv', 'mmdet', 'mmseg')  # packages whose Resize, Pad and so on are known
WITHOUT_EFFECT = ('PackDetInputs', 'PackSegInputs', 'RandomFlip')  # in a test


def content(cfg: Config) -> str:
    """What images hold, as the loader of the config's test pipeline makes them, a phrase."""
    loader = _loader(cfg)
    words = ''
    if decodes_as_stock(loader):
        kind = loader.color_type.partition('_')[0]  # some end in _ignore_orientation
        words = dict(color='BGR, 0 to 255, ', grayscale='grey, 0 to 255, ').get(kind, '')
    return f'{words}as loaded by {loading(loader)}'


def recipe(cfg: Config) -> dict[str, str]:
    """What stands between a file and the graph, for its metadata.

    Returns:
        ``colors``: ``color_type`` of mmcv's loader, and ``prepare``: a JSON list of steps, each
        ``{"resize": [width, height], "keep_ratio": bool}``, ``{"scale": [x, y]}`` or
        ``{"pad": [width, height], "divisor": int, "value": [...]}``; or ``unprepared``: what of the
        pipeline cannot be said so.
    """
    loader, scope = _loader(cfg), cfg.get('default_scope')
    if not decodes_as_stock(loader) or getattr(loader, 'imdecode_backend', 'cv2') != 'cv2':
        return dict(unprepared=loading(loader))
    steps: list[dict] = []
    for node in tested_dataset(cfg).get('pipeline') or []:
        kind = class_of(TRANSFORMS, node, scope)
        if issubclass(kind, (LoadImageFromFile, LoadAnnotations)):
            continue
        stock = kind.__module__.partition('.')[0] in STOCK
        if stock and kind.__name__ in WITHOUT_EFFECT and not node.get('prob'):
            continue
        step = _step(build(TRANSFORMS, node, scope)) if stock else None
        if step is None:
            return dict(unprepared=kind.__name__)
        steps.append(step)
    return dict(colors=loader.color_type, prepare=json.dumps(steps))


def _loader(cfg: Config) -> BaseTransform:
    pipeline: Sequence[dict] = tested_dataset(cfg).get('pipeline') or []
    return find_loaders(list(pipeline), cfg.get('default_scope')).image


def _step(step: BaseTransform) -> dict | None:
    """A step as data, None where it cannot be said so."""
    name = type(step).__name__
    if name == 'Resize' and (step.backend, step.interpolation) == ('cv2', 'bilinear'):
        if step.scale is None:
            factor = step.scale_factor
            factor = factor if isinstance(factor, (tuple, list)) else (factor, factor)
            return dict(scale=[float(x) for x in factor], keep_ratio=bool(step.keep_ratio))
        return dict(resize=[int(x) for x in step.scale], keep_ratio=bool(step.keep_ratio))
    if name == 'Pad' and step.padding_mode == 'constant' and not step.pad_to_square:
        value = step.pad_val['img'] if isinstance(step.pad_val, dict) else step.pad_val
        value = [float(x) for x in value] if isinstance(value, (tuple, list)) else [float(value)]
        size = None if step.size is None else [int(x) for x in step.size]
        return dict(pad=size, divisor=step.size_divisor or 1, value=value)
    return None
