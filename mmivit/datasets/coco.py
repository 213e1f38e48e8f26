"""Detection data sets: a COCO file and its images, as mmdet's ``CocoDataset`` reads them."""

from __future__ import annotations

import json
import os
from functools import partial

from mmengine.dataset import BaseDataset

from mmivit.datasets.coco_file import annotation_findings, category_findings, usable_entries
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
    report.add(annotation_findings(parts['annotations'], sizes, set(names), loaders.with_mask))
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
