"""Detection data sets: a COCO file and its images, as mmdet's ``CocoDataset`` reads them."""

from __future__ import annotations

import io
import os
from collections import Counter
from contextlib import redirect_stdout
from functools import partial

from mmengine.dataset import BaseDataset

from mmivit.datasets.coco_file import (
    annotation_findings,
    category_findings,
    image_findings,
    read_json,
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
        content = read_json(dataset.ann_file)
    except ValueError as error:
        report.add([Finding('annotation files that are not JSON', str(error))])
        return set(classes)
    # Semi-supervised training has a part whose pipeline loads no labels.
    unlabelled = 'train' in splits and loaders.labels is None
    bare = isinstance(content, dict) and 'annotations' not in content
    parts: dict[str, list[dict]] = dict(annotations=[])
    names = ['images', 'categories', 'annotations']
    if unlabelled or (bare and splits == ['test']):
        names.remove('annotations')
    if unlabelled and isinstance(content, dict) and content.get('categories') == []:
        names.remove('categories')
    for part in names:
        parts[part], found = usable_entries(content, part)
        report.add(found)
    report.add(image_findings(parts['images']))
    seen = set(classes)
    if not unlabelled:
        seen = _report_labels(report, dataset, loaders, splits, parts)
    elif parts['images']:
        _report_use(report, dataset, [], {})
    prefix = dataset.data_prefix.get('img', '')
    samples = [
        dict(
            img_path=os.path.join(prefix, image['file_name']),
            img_id=image['id'],
            height=image['height'],
            width=image['width'],
        )
        for image in parts['images']
    ]
    annotated = {annotation['image_id'] for annotation in parts['annotations']}
    pictures = look_at_all(partial(look_at_image, load_image=loaders.image), samples, report)
    for picture, sample in zip(pictures, samples):
        path, stated = sample['img_path'], (sample['height'], sample['width'])
        if picture.size not in (None, stated):
            where = f'{path}: {size_text(stated)} stated, {size_text(picture.size)} loaded'
            kind = 'images of another size than the annotation file states'
            report.add([Finding(kind, where)])
        if not unlabelled and sample['img_id'] not in annotated:
            report.add([Finding('images without an annotation', path, problem=False)])
    return seen


def _report_labels(
    report: DataReport,
    dataset: BaseDataset,
    loaders: Loaders,
    splits: list[str],
    parts: dict[str, list[dict]],
) -> set[str]:
    """Report on the usable categories and annotations of a file; the classes seen."""
    classes = dataset.metainfo.get('classes') or ()
    names = {category['id']: category['name'] for category in parts['categories']}
    sizes = {image['id']: (image['height'], image['width']) for image in parts['images']}
    annotations = parts['annotations']
    report.add(category_findings([entry['name'] for entry in parts['categories']], classes))
    report.add(annotation_findings(annotations, sizes, set(names), loaders.with_mask))
    objects = [
        annotation
        for annotation in annotations
        if names.get(annotation['category_id']) in classes and annotation['image_id'] in sizes
    ]
    if objects and 'train' in splits:
        _report_use(report, dataset, objects, names)
    elif objects:
        _report_evaluated(report, objects)
    used = {annotation['category_id'] for annotation in annotations}
    return {names[number] for number in used & names.keys()}


def _report_use(
    report: DataReport, dataset: BaseDataset, objects: list[dict], names: dict[int | str, str]
) -> None:
    """Report how much is left of a training set after the data set's own filters.

    Args:
        objects: annotations of the config's classes; none where no labels are loaded.
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
    counted = f'{len(learnt)} of {len(objects)} objects and ' if objects else ''
    report.facts.append(f'{counted}{len(used)} of {len(dataset.data_list)} images reach training')
    if not used:
        kind = 'annotation files of which no image reaches training'
        report.add([Finding(kind, f'filter_cfg={dict(dataset.filter_cfg or {})}')])
    images = {entry['img_id'] for entry in used}
    reasons: Counter[str] = Counter()
    for item in objects:
        reason = _reason(item, images)
        if reason:
            reasons[reason] += 1
            where = f'annotation {item["id"]} of image {item["image_id"]}'
            kind = f'objects that do not reach training: {reason}'
            report.add([Finding(kind, where, problem=False)])
    if 2 * len(learnt) < len(objects):
        why = ', '.join(f'{count} {reason}' for reason, count in reasons.items())
        why = f': {why}' if why else ''
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
