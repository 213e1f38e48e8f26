"""What can be wrong with a COCO file by itself, as mmdet's ``CocoDataset`` reads it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeGuard

import cv2
import numpy as np
from tqdm import tqdm

from mmivit.datasets.report import Finding, first_line

BOXES_ALONE = 'configs/examples/your_dataset_boxes.py'
TOLERANCE = 1.0  # pixels by which boxes and polygons may pass the border: rounding


def _is_id(value: object) -> bool:
    return isinstance(value, (int, str))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and abs(value) < 1e9  # neither infinite nor NaN


def _is_side(value: object) -> bool:
    return _is_number(value) and value >= 1


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


# What CocoDataset needs of every entry.
FIELDS: dict[str, dict[str, Callable[[object], bool]]] = dict(
    images=dict(id=_is_id, file_name=_is_text, width=_is_side, height=_is_side),
    categories=dict(id=_is_id, name=_is_text),
    annotations=dict(id=_is_id, image_id=_is_id, category_id=_is_id, bbox=_is_box, area=_is_number),
)


def read_json(path: str) -> object:
    """The content of a JSON file.

    Raises:
        ValueError: it cannot be read as JSON.
    """
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f'{path}: {first_line(error)}') from error


def usable_entries(content: object, part: str) -> tuple[list[dict], list[Finding]]:
    """The entries of 'images', 'categories' or 'annotations' that have what CocoDataset needs."""
    entries = content.get(part) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        return [], [Finding('lists missing in the annotation file', part)]
    usable, found, ids = [], [], set()
    for index, entry in enumerate(entries):
        values = entry if isinstance(entry, dict) else {}
        bad = [key for key, fits in FIELDS[part].items() if not fits(values.get(key))]
        where = f'{part}[{index}]'
        found += [Finding(f'{part} with {key!r} missing or senseless', where) for key in bad]
        if bad:
            continue
        if values['id'] in ids:
            found.append(Finding(f'{part} with a duplicate id', f'{where}: {values["id"]}'))
        ids.add(values['id'])
        usable.append(values)
    if not usable:
        found.append(Finding(f'annotation files without usable {part}', part))
    return usable, found


class CocoFile(NamedTuple):
    """The entries of a file that have what ``CocoDataset`` needs."""

    path: str
    images: list[dict]
    categories: list[dict]
    annotations: list[dict]

    @classmethod
    def read(cls, path: str) -> CocoFile:
        """Read a file, leaving out what is faulty.

        Raises:
            ValueError: it cannot be read as JSON.
        """
        content = read_json(path)
        parts = ('images', 'categories', 'annotations')
        return cls(path, *(usable_entries(content, part)[0] for part in parts))

    def labels(self, classes: Sequence[str]) -> list[str]:
        """The class that each label stands for: numbered in the file's order, not the config's."""
        return [entry['name'] for entry in self.categories if entry['name'] in classes]

    def objects(self, classes: Sequence[str]) -> list[dict]:
        """The annotations that ``CocoDataset`` hands to a pipeline."""
        wanted = {entry['id'] for entry in self.categories if entry['name'] in classes}
        return [
            item
            for item in self.annotations
            if item['category_id'] in wanted
            and not item.get('ignore')
            and item['area'] > 0
            and min(item['bbox'][2:]) >= 1
        ]


def category_findings(names: Sequence[str], classes: Sequence[str]) -> Iterator[Finding]:
    """Compare the names of a file's categories with the classes of a config."""
    missing = [name for name in classes if name not in names]
    for name in missing:
        kind = 'classes of the config that no category of the annotation file is named'
        yield Finding(kind, name)
    for name in names:
        if name not in classes:
            kind = 'categories that are no class of the config: their annotations are left out'
            yield Finding(kind, name, problem=False)
    kept = [name for name in names if name in classes]
    repeated = [name for name, count in Counter(kept).items() if count > 1]
    for name in repeated:
        yield Finding('categories of the same name, each of which CocoDataset numbers', name)
    if not missing and not repeated and kept != list(classes):
        # CocoDataset numbers its labels in the file's order, whatever the order of the classes.
        kind = "classes in another order than the annotation file's: labels would be misnamed"
        yield Finding(kind, f'write classes={tuple(kept)}')


def image_findings(images: list[dict]) -> Iterator[Finding]:
    """Find files listed more than once: each copy is trained on with a part of the objects."""
    ids: dict[str, list] = {}
    for image in images:
        ids.setdefault(os.path.normpath(image['file_name']), []).append(image['id'])
    for name, listed in ids.items():
        if len(listed) > 1:
            where = f'{name}: ids {", ".join(map(str, listed))}'
            yield Finding('files under more than one image id, their objects divided', where)


def annotation_findings(
    annotations: list[dict],
    sizes: dict[int | str, tuple[float, float]],
    categories: set,
    with_mask: bool,
) -> Iterator[Finding]:
    """Check annotations one by one.

    Args:
        annotations: those with all that CocoDataset needs.
        sizes: height and width of the images by id.
        categories: ids of the categories.
        with_mask: whether the pipeline or the evaluator wants masks.
    """
    for annotation in tqdm(annotations, unit='annotation'):
        where = f'annotation {annotation["id"]}'
        image, category = annotation['image_id'], annotation['category_id']
        if category not in categories:
            yield Finding('annotations of an unknown category', f'{where}: category {category}')
        if image not in sizes:
            yield Finding('annotations of an unknown image', f'{where}: image {image}')
            continue
        where += f' of image {image}'
        yield from _box_findings(annotation, *sizes[image], where)
        if not with_mask:  # nobody reads them
            continue
        mask = annotation.get('segmentation')
        if mask:
            faults = (_run_faults if isinstance(mask, dict) else _polygon_faults)(
                mask, *sizes[image]
            )
            yield from (Finding(kind, where) for kind in sorted(faults))
        else:
            kind = 'annotations without the mask that the pipeline or the evaluator wants'
            yield Finding(f'{kind} (for boxes alone: {BOXES_ALONE})', where)


def _box_findings(annotation: dict, height: float, width: float, where: str) -> Iterator[Finding]:
    x, y, w, h = annotation['bbox']
    where += f': x, y, w, h = {x}, {y}, {w}, {h}'
    if w <= 0 or h <= 0:
        yield Finding('boxes of zero or negative size', where)
    elif annotation['area'] <= 0:
        yield Finding('annotations of no area, which CocoDataset leaves out', where)
    elif w < 1 or h < 1:
        yield Finding('boxes under a pixel, which CocoDataset leaves out', where, problem=False)
    if min(x, y) < -TOLERANCE or x + w > width + TOLERANCE or y + h > height + TOLERANCE:
        yield Finding('boxes reaching outside the image', f'{where} in {width} x {height}')


def _polygon_faults(polygons: object, height: float, width: float) -> set[str]:
    if not isinstance(polygons, list):
        return {'masks that are neither polygons nor run lengths'}
    faults = set()
    for polygon in polygons:
        fits = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
        if not fits or not all(map(_is_number, polygon)):
            faults.add('polygons that are empty or not three points or more')
            continue
        points = np.array(polygon, np.float32).reshape(-1, 2)
        if cv2.contourArea(points) == 0:
            faults.add('polygons without area')
        far = points.max(0) > (width + TOLERANCE, height + TOLERANCE)
        if points.min() < -TOLERANCE or far.any():
            faults.add('polygons reaching outside the image')
    return faults


def _run_faults(mask: dict, height: float, width: float) -> set[str]:
    # pycocotools fills a mask whose runs end early with whatever the memory held.
    if mask.get('size') != [height, width]:
        return {'run-length masks of another size than the image'}
    try:
        counts = mask.get('counts', ())
        runs = unpack_runs(counts) if isinstance(counts, str) else list(counts)
        whole = all(isinstance(run, int) and run >= 0 for run in runs)
    except (TypeError, ValueError):
        whole = False
    if not whole or sum(runs) != height * width:
        return {'run-length masks that are broken'}
    return set() if sum(runs[1::2]) else {'run-length masks without a pixel'}


def unpack_runs(counts: str) -> list[int]:
    """Run lengths of COCO's packed text, background first.

    Five bits a character, the lowest first, and a sixth where more follow; from the fourth run on
    what is packed is the difference to the run before last.

    Raises:
        ValueError: a character or a run that the packing cannot have.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:
            raise ValueError(f'not packed run lengths: {counts[:20]!r}')
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError(f'packed run lengths end early: {counts[-20:]!r}')
    return runs
