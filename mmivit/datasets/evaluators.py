"""Evaluators that read a COCO file of their own, against the data sets whose images they judge."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from mmengine.registry import METRICS

from mmivit.datasets.coco_file import CocoFile
from mmivit.datasets.report import Finding
from mmivit.registry import class_of

ID_ZERO = "annotations with id 0, which COCO's matching takes for no match: count from 1"
NO_ISCROWD = "annotations without 'iscrowd', on which COCO's evaluation fails: write 0"
UNKNOWN_IMAGE = "images that the evaluator's file does not have"
OTHER_IMAGE = "images that are others in the evaluator's file"
NOT_LOADED = "images of the evaluator's file that are not loaded: their objects count as missed"
SPOILING = frozenset((ID_ZERO, NOT_LOADED))  # the score; the other kinds end the evaluation


def reads_coco_file(evaluator: dict, scope: str | None) -> bool:
    """Is it mmdet's ``CocoMetric``, or computes as that does, with a file of its own?

    Args:
        evaluator: as a config has it.
        scope: of the config.
    """
    if not evaluator.get('ann_file') or '://' in evaluator['ann_file']:
        return False
    kind = class_of(METRICS, evaluator, scope)
    base = getattr(sys.modules.get('mmdet.evaluation'), 'CocoMetric', None)
    return (  # LVIS's derives from it, for files of another kind
        base is not None and issubclass(kind, base) and kind.compute_metrics == base.compute_metrics
    )


def wants_masks(evaluator: dict) -> bool:
    """Does it compare masks?"""
    metric = evaluator.get('metric', 'bbox')
    return 'segm' in ([metric] if isinstance(metric, str) else metric)


def evaluator_findings(file: CocoFile, loaded: Sequence[CocoFile]) -> Iterator[Finding]:
    """Find what is wrong with the file of an evaluator.

    Args:
        file: the evaluator's.
        loaded: those of the data sets that it judges; empty if they are not all known.
    """
    for item in file.annotations:
        where = f'{file.path}: annotation {item["id"]} of image {item["image_id"]}'
        if item['id'] == 0:
            yield Finding(ID_ZERO, where)
        if 'iscrowd' not in item:
            yield Finding(NO_ISCROWD, where)
    if not loaded:
        return
    names = {image['id']: image['file_name'] for image in file.images}
    for image in (image for other in loaded for image in other.images):
        number, own = image['id'], image['file_name']
        if number not in names:
            yield Finding(UNKNOWN_IMAGE, f'{file.path} has no image {number} ({own})')
        elif not _may_be_same(names[number], own):
            where = f'{file.path}: image {number} is {names[number]}, loaded is {own}'
            yield Finding(OTHER_IMAGE, where)
    for number in names.keys() - {image['id'] for other in loaded for image in other.images}:
        yield Finding(NOT_LOADED, f'{file.path}: image {number} ({names[number]})')


def _may_be_same(one: str, other: str) -> bool:
    """Are these one file, seen perhaps from folders above each other?"""
    parts = PurePath(one).parts, PurePath(other).parts
    shared = min(map(len, parts))
    return parts[0][-shared:] == parts[1][-shared:]
