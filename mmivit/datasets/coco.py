"""Detection data sets: a COCO file and its images, as mmdet's ``CocoDataset`` reads them."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from contextlib import redirect_stdout
from functools import partial

from mmengine.dataset import BaseDataset

from mmivit.datasets.coco_file import (
    annotation_findings,
    category_findings,
    file_findings,
    usable_entries,
)
from mmivit.datasets.images import look_at_all, look_at_image, size_text
from mmivit.datasets.loaders import Loaders
from mmivit.datasets.report import DataReport, Finding, first_line


def check_coco(
    report: DataReport, dataset: BaseDataset, loaders: Loaders, splits: list[str]
) -> set[str]:
    """Report on the COCO file and the images of a ``CocoDataset``; the classes seen.

    The arguments are those of every check; see :mod:`mmivit.datasets.checks`.
    """
    classes = dataset.metainfo.get('classes') or ()
    try:
        with open(dataset.ann_file, encoding='utf-8') as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        where = f'{dataset.ann_file}: {first_line(error)}'
        report.add([Finding('annotation files that are not JSON', where)])
        return set(classes)
    may_be_unlabelled = splits == ['test']
    unlabelled = may_be_unlabelled and isinstance(content, dict) and 'annotations' not in content
    parts = dict(annotations=[])
    for part in ('images', 'categories', 'annotations')[: 2 if unlabelled else 3]:
        parts[part], found = usable_entries(content, part)
        report.add(found)
    names = {category['id']: category['name'] for category in parts['categories']}
    sizes = {image['id']: (image['height'], image['width']) for image in parts['images']}
    report.add(category_findings([entry['name'] for entry in parts['categories']], classes))
    report.add(file_findings(parts['images']))
    report.add(annotation_findings(parts['annotations'], sizes, set(names), loaders.with_mask))
    objects = [
        a
        for a in parts['annotations']
        if names.get(a['category_id']) in classes and a['image_id'] in sizes
    ]
    if objects and 'train' in splits and loaders.labels:
        _report_use(report, dataset, objects, names)
    elif objects and 'train' not in splits:
        _report_evaluated(report, objects)
    prefix = dataset.data_prefix.get('img', '')
    paths = [os.path.join(prefix, image['file_name']) for image in parts['images']]
    annotated = {annotation['image_id'] for annotation in parts['annotations']}
    pictures = look_at_all(partial(look_at_image, load_image=loaders.image), paths, report)
    for picture, image, path in zip(pictures, parts['images'], paths):
        stated = (image['height'], image['width'])
        if picture.size not in (None, stated):
            where = f'{path}: {size_text(stated)} stated, {size_text(picture.size)} loaded'
            kind = 'images of another size than the annotation file states'
            report.add([Finding(kind, where)])
        if image['id'] not in annotated:
            report.add([Finding('images without an annotation', path, problem=False)])
    return {names.get(annotation['category_id']) for annotation in parts['annotations']}


def _report_use(
    report: DataReport, dataset: BaseDataset, objects: list[dict], names: dict[int | str, str]
) -> None:
    """Report how much is left of a training set after the data set's own filters.

    Args:
        objects: annotations of the config's classes.
        names: of the categories, by id.
    """
    try:
        with redirect_stdout(io.StringIO()):  # pycocotools tells how long it took
            dataset.data_list = dataset.load_data_list()
        used = dataset.filter_data()
    except Exception as error:  # of anything that the file's faults lead to
        where = f'{dataset.ann_file}: {first_line(error)}'
        report.add([Finding('annotation files that CocoDataset fails to read', where)])
        return
    instances = [instance for entry in used for instance in entry['instances']]
    learnt = [instance for instance in instances if not instance['ignore_flag']]
    report.facts.append(
        f'{len(learnt)} of {len(objects)} objects and {len(used)} of {len(dataset.data_list)} '
        'images reach training'
    )
    images = {entry['img_id'] for entry in used}
    reasons: dict[str, list[dict]] = {}
    for item in objects:
        reason = _reason(item, images)
        if reason:
            reasons.setdefault(reason, []).append(item)
            where = f'annotation {item["id"]} of image {item["image_id"]}'
            kind = f'objects that do not reach training: {reason}'
            report.add([Finding(kind, where, problem=False)])
    why = ', '.join(f'{len(items)} {reason}' for reason, items in reasons.items())
    why = f': {why}' if why else ''
    if 2 * len(learnt) < len(objects):
        kind = 'annotation files most of whose objects do not reach training'
        report.add([Finding(kind, f'{len(learnt)} of {len(objects)} do{why}')])
    left = {names[dataset.cat_ids[instance['bbox_label']]] for instance in learnt}
    for name, count in Counter(names[item['category_id']] for item in objects).items():
        if name not in left:
            kind = 'classes none of whose objects reach training'
            report.add([Finding(kind, f'{name}: {count} annotated')])


def _reason(item: dict, images: set) -> str:
    """Why an object without a fault of its own is not trained on; empty if it is."""
    if item['image_id'] not in images:
        return 'in images that filter_cfg leaves out'
    if item.get('ignore'):
        return "marked 'ignore'"
    return "marked 'iscrowd'" if item.get('iscrowd') else ''


def _report_evaluated(report: DataReport, objects: list[dict]) -> None:
    crowds = sum(bool(item.get('iscrowd')) for item in objects)
    left = len(objects) - crowds
    report.facts.append(f'{left} of {len(objects)} objects are evaluated')
    if crowds:
        kind = 'annotation files with objects that evaluation passes over'
        problem = 2 * left < len(objects)
        report.add([Finding(kind, f"{crowds} of {len(objects)} are marked 'iscrowd'", problem)])
