"""Evaluators that read a COCO file of their own, against the data sets whose images they judge."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from mmengine.registry import METRICS

from mmivit.datasets.coco_file import evaluation_findings, read_json, usable_entries
from mmivit.datasets.loaders import class_of
from mmivit.datasets.report import DataReport, Finding


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


def check_evaluator(report: DataReport, path: str, loaded: Sequence[str]) -> None:
    """Report on the COCO file of an evaluator.

    Args:
        report: of a data set that it evaluates.
        path: of the evaluator's file.
        loaded: the COCO files of all data sets that it evaluates; empty if they are not all known.
    """
    try:
        content = read_json(path)
    except ValueError as error:
        report.add([Finding("evaluators' files that are not JSON", str(error))])
        return
    report.add(evaluation_findings(usable_entries(content, 'annotations')[0]))
    try:
        images = [entry for file in loaded for entry in file_images(file)]
    except ValueError:  # the report on that data set says so
        return
    if images:
        report.add(_compare(path, file_images(path), images))


def file_images(path: str) -> list[dict]:
    """The images of a COCO file that have what ``CocoDataset`` needs.

    Raises:
        ValueError: it cannot be read as JSON.
    """
    return usable_entries(read_json(path), 'images')[0]


def _compare(path: str, evaluated: list[dict], loaded: list[dict]) -> Iterator[Finding]:
    """Find where evaluation would compare one image's predictions with another's objects."""
    names = {image['id']: image['file_name'] for image in evaluated}
    for image in loaded:
        name = names.pop(image['id'], None)
        if name is None:
            where = f'{path} has no image {image["id"]} ({image["file_name"]})'
            yield Finding("images that the evaluator's file does not have", where)
        elif not _may_be_same(name, image['file_name']):
            where = f'{path}: image {image["id"]} is {name}, loaded is {image["file_name"]}'
            yield Finding("images that are others in the evaluator's file", where)
    for number, name in names.items():
        kind = "images of the evaluator's file that are not loaded: their objects count as missed"
        yield Finding(kind, f'{path}: image {number} ({name})')


def _may_be_same(one: str, other: str) -> bool:
    """Are these one file, seen perhaps from folders above each other?"""
    parts = PurePath(one).parts, PurePath(other).parts
    shared = min(map(len, parts))
    return parts[0][-shared:] == parts[1][-shared:]
