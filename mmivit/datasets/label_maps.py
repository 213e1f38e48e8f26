"""Segmentation data sets: images and their label maps, as mmseg's ``BaseSegDataset`` lists them."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset

from mmivit.datasets.images import (
    FileFault,
    Picture,
    load,
    look_at_all,
    look_at_image,
    read_file,
    size_text,
)
from mmivit.datasets.loaders import Loaders, decodes_as_stock
from mmivit.datasets.report import DataReport, Finding, first_line
from mmivit.utils.files import is_apple_double

IGNORED = 255  # label, in data sets that don't say


def check_label_maps(
    report: DataReport, dataset: BaseDataset, loaders: Loaders, splits: list[str]
) -> set[str]:
    """Report on the images and label maps of a ``BaseSegDataset``; the classes seen.

    The arguments are those of every check; see :mod:`mmivit.datasets.checks`.
    """
    classes = dataset.metainfo.get('classes') or ()
    try:
        entries = dataset.load_data_list()
    except (OSError, ValueError, TypeError) as error:
        report.add([Finding('lists of images that cannot be read', first_line(error))])
        return set(classes)
    if not entries:
        folder = dataset.data_prefix.get('img_path') or ''
        there = Counter(os.path.splitext(n)[1] for _, _, names in os.walk(folder) for n in names)
        where = f'{folder} holds {dict(there.most_common(3)) or "no file"}'
        report.add([Finding(f'folders without an image named *{dataset.img_suffix}', where)])
        return set(classes)
    if not dataset.ann_file:  # the folder of images is the list, so a missing one goes unnoticed
        named = {entry.get('seg_map_path') for entry in entries}
        for root, _, names in os.walk(dataset.data_prefix.get('seg_map_path') or ''):
            for path in sorted(os.path.join(root, name) for name in names):
                is_map = path.endswith(dataset.seg_map_suffix) and not is_apple_double(path)
                if is_map and path not in named:
                    report.add([Finding('label maps without an image', path, problem=False)])
    look = partial(
        look_at_pair,
        load_image=loaders.image,
        load_labels=loaders.labels,
        classes=len(classes),
        ignored=getattr(dataset, 'ignore_index', IGNORED),  # mmdet's own has none
    )
    pictures = look_at_all(look, entries, report)
    seen = {label for picture in pictures for label in picture.labels}
    return {classes[label] for label in seen} if loaders.labels else set(classes)


def look_at_pair(
    entry: dict,
    load_image: BaseTransform,
    load_labels: BaseTransform | None,
    classes: int,
    ignored: int,
) -> Picture:
    """An image and its label map, as one entry of a segmentation data set names them.

    Args:
        entry: with ``img_path``, and ``seg_map_path`` if it has one.
        load_image, load_labels: the pipeline's loaders; no label map is read without the latter.
        classes: how many there are.
        ignored: the label that is none of them.
    """
    picture = look_at_image(entry, load_image)
    path = entry.get('seg_map_path')
    if load_labels is None or path is None:
        return picture
    try:
        labels, stored = _load_label_map(entry, load_labels)
    except FileFault as fault:
        picture.found.append(Finding(*fault.args))
        return picture
    if picture.size not in (None, labels.shape):
        where = f'{path}: {size_text(labels.shape)}, image {size_text(picture.size)}'
        picture.found.append(Finding('label maps of another size than the image', where))
    unknown = (labels >= classes) & (labels != ignored)
    if unknown.any():
        values = ', '.join(str(int(value)) for value in np.unique(stored[unknown])[:8])
        kind = f'label maps with values that are none of the {classes} classes'
        picture.found.append(Finding(kind, f'{path}: {values}'))
    picture.labels = [label for label in np.unique(labels).tolist() if label < classes]
    return picture


def _load_label_map(entry: dict, load_labels: BaseTransform) -> tuple[np.ndarray, np.ndarray]:
    """The labels (height, width) and, where mmcv decodes them, the values that are stored."""
    path = entry['seg_map_path']
    sample = dict(entry, seg_fields=[])
    if not decodes_as_stock(load_labels):
        labels = load(load_labels, sample, 'gt_seg_map', path, 'label maps')
        return labels, labels
    image, _ = read_file(path, 'label maps')
    kind = 'label maps that are not 8-bit with a single channel'
    if image.mode not in ('1', 'L', 'P'):  # a palette's indices are the labels
        raise FileFault(kind, f'{path}: mode {image.mode}')
    labels = load(load_labels, sample, 'gt_seg_map', path, 'label maps')
    stored = np.asarray(image)
    if labels.shape != stored.shape:
        raise FileFault(kind, f'{path}: loaded as {labels.shape}')
    return labels, stored
