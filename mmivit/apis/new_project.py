"""A project from a folder of images and their annotations: data, a split, and a config to train."""

from __future__ import annotations

import colorsys
import csv
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmivit.apis.check_data import check_datasets
from mmivit.apis.images import find_images
from mmivit.datasets.formats import Annotations, Thing, read_annotations
from mmivit.datasets.images import size_as_loaded
from mmivit.datasets.label_maps import IGNORED
from mmivit.datasets.report import DataReport
from mmivit.datasets.splits import find_groups, hold_out, looks_tiled
from mmivit.errors import LaunchError
from mmivit.utils.text import listed, printable

# What is trained, and by which of configs/examples; the first config is the one of the block.
EXAMPLES = dict(boxes=('boxes', 'atss'), masks=('detection',), labels=('segmentation',))
BLOCK = re.compile(r'(?s)(# ---- yours -+\n)(.*?)(# -+\n)')
SMALL = dict(arch='nano', weights=None, width=64)  # for a CPU or a laptop
SMALL_DETECTOR = dict(SMALL, regions=64)
LARGEST = (1333, 800)  # pixels; larger images are scaled down to fit, if nothing else is said
CROP = 512


@dataclass
class Project:
    """What was made: its configs, what was noted on the way, and what the data checks say."""

    configs: list[Path]
    notes: list[str] = field(default_factory=list)
    reports: list[DataReport] = field(default_factory=list)


def new_project(
    images: str | Path,
    project: str | Path,
    configs: Path,
    annotations: str | Path | None = None,
    classes: Sequence[str] | None = None,
    group: str | None = None,
    val: str | Sequence[str] = '0.2',
    boxes: bool = False,
    copy: bool = False,
    small: bool = False,
    settings: dict | None = None,
) -> Project:
    """Make a project's folder: annotations in one form, split, and a config ready to train.

        project/NAME.py                       the config, of configs/examples with its block filled
        project/annotations/{train,val}.json  COCO; or train.txt, val.txt and labels/, label maps
        project/split.csv                     image, group, split
        project/images/                       only with ``copy``

    Args:
        images: folder, searched with its subfolders.
        project: folder to write, complete or not there; its name is the project's.
        configs: folder of the shipped configs.
        annotations: file or folder of them; the folder of the images if not given.
        classes: which to keep, in this order; of label maps, the names of the values 0, 1, ...
        group: rule by which images belong together; see :func:`mmivit.datasets.splits.find_groups`.
        val: share of the images that is held out, by whole groups, or the groups' names.
        boxes: train on boxes alone though objects have masks.
        copy: copy the images instead of naming them where they are.
        small: a model for a CPU or a laptop, from scratch.
        settings: values of further variables of the config's block.

    Raises:
        LaunchError: annotations, classes, groups or a setting do not fit; says what to do.
        FileNotFoundError: no image.
        FileExistsError: the project's folder is there and not empty.
    """
    images, project = Path(images), Path(project)
    if not images.is_dir():
        raise FileNotFoundError(f'{images} is no folder of images')
    if project.exists() and (not project.is_dir() or any(project.iterdir())):
        raise FileExistsError(f'{project} exists and is not empty; name another folder')
    source = Path(annotations) if annotations else images
    if not source.exists():
        raise FileNotFoundError(f'--annotations: no file or folder {source}')
    files = [path for path, _ in find_images([images], project)]
    if source != images:  # label maps in a folder among the images are none
        files = [path for path in files if not path.is_relative_to(source)]
    read = read_annotations(source, images, files)
    notes = [f'{count} {text}' for text, count in read.notes.items()]
    labelled = [file for file in files if file in read.objects or file in read.maps]
    sizes = {file: size_as_loaded(file) for file in tqdm(labelled, unit='image')}
    if read.maps:
        task, names = 'labels', _label_names(read.maps, classes)
    else:
        names = _keep_classes(read, classes, notes)
        task = 'boxes' if boxes else _task(read, notes)
    relative = {file.relative_to(images).as_posix(): file for file in labelled}
    groups = find_groups(list(relative), group)
    start = looks_tiled(list(relative)) if group is None else None
    if start:
        notes.insert(
            0,
            f'WARNING: images named {printable(start)}... look like tiles of one photograph, and '
            'the split is random between them, so the score will be better than on new '
            "photographs. Give their group, for instance --group '([^/]+)_[0-9]+_[0-9]+$'",
        )
    held = hold_out(groups, val)
    splits = {name: 'val' if groups[name] in held else 'train' for name in relative}
    of_groups = Counter(splits[name] for name in {g: n for n, g in groups.items()}.values())
    counts = Counter(splits.values())
    notes.append(
        f'{read.form}: {counts["train"]} images of {of_groups["train"]} groups to train on, '
        f'{counts["val"]} of {of_groups["val"]} held out (split.csv); {task}, '
        f'{len(names)} classes: {listed(names)}'
    )
    reduced = (SMALL if task == 'labels' else SMALL_DETECTOR) if small else {}
    settings = _block(read, task, names, sizes) | reduced | (settings or {})
    place = 'images' if copy else str(images.resolve())
    partial = project.with_name(f'.{project.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    table = io.StringIO()
    rows = [(name, groups[name], splits[name]) for name in sorted(relative)]
    csv.writer(table).writerows([('image', 'group', 'split'), *rows])
    (partial / 'split.csv').write_text(table.getvalue())
    for name, file in relative.items() if copy else ():
        _copy(file, partial / 'images' / name)
    block: dict[str, Any] = dict(data_root=f'{project.resolve()}/')
    for split in ('train', 'val'):
        own = {name: file for name, file in relative.items() if splits[name] == split}
        if task == 'labels':
            (partial / f'{split}.txt').write_text(''.join(f'{name}\n' for name in own))
            prefix = dict(img_path=place, seg_map_path='labels')
            block[split] = dict(ann_file=f'{split}.txt', data_prefix=prefix)
            for name, file in own.items():
                _copy(read.maps[file], partial / 'labels' / f'{name}.png')
        else:
            coco = _coco(own, read.objects, sizes, names, task == 'masks')
            target = partial / 'annotations' / f'{split}.json'
            target.parent.mkdir(exist_ok=True)
            target.write_text(json.dumps(coco))
            block[split] = dict(ann_file=f'annotations/{split}.json', data_prefix=dict(img=place))
    written = _write_configs(partial, project, configs, EXAMPLES[task], block | settings)
    if project.exists():
        project.rmdir()
    partial.rename(project)
    try:
        reports = check_datasets(str(written[0]), ('train', 'val'))
    except BaseException:
        shutil.rmtree(project)  # so that the command can be given again
        raise
    return Project(written, notes, reports)


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


def _block(
    read: Annotations, task: str, names: list[str], sizes: dict[Path, tuple[int, int]]
) -> dict[str, Any]:
    """What the data say of the variables in a config's block: classes and sizes."""
    largest = [max(sides) for sides in zip(*(sorted(size) for size in sizes.values()))]
    short, long = (min(side, most) for side, most in zip(largest, LARGEST[::-1]))
    block: dict[str, Any] = dict(classes=tuple(names), image_size=(long, short))
    if task == 'labels':
        side = max(32, min(CROP, short) // 32 * 32)
        palette = [(0, 0, 0), *(_colour(i, len(names) - 1) for i in range(len(names) - 1))]
        block |= dict(palette=palette, img_suffix='', crop_size=(side, side))
    return block


def _label_names(maps: dict[Path, Path], classes: Sequence[str] | None) -> list[str]:
    """The classes of label maps, which hold no names.

    Raises:
        LaunchError: none are given, or fewer than the maps have values.
    """
    values: set[int] = set()
    for path in tqdm(maps.values(), unit='label map'):
        with Image.open(path) as image:
            if image.mode not in ('1', 'L', 'P'):
                raise LaunchError(
                    f'{path} has mode {image.mode}: a label map has one channel of 8 bits, whose '
                    'values 0, 1, ... are the classes'
                )
            values |= set(np.unique(image).tolist())
    values.discard(IGNORED)
    if not classes or len(classes) <= max(values, default=0):
        raise LaunchError(
            f'the label maps hold the values {listed([str(v) for v in sorted(values)])} and '
            f'{len(classes or ())} names were given: name the values 0 to {max(values, default=0)} '
            f'with --classes ({IGNORED} is ignored)'
        )
    return list(classes)


def _keep_classes(read: Annotations, classes: Sequence[str] | None, notes: list[str]) -> list[str]:
    """The classes asked for; objects of others are taken out of what was read.

    Raises:
        LaunchError: there are no objects of one, or none at all.
    """
    found = Counter(thing.name for things in read.objects.values() for thing in things)
    if not found:
        raise LaunchError(f'the annotations ({read.form}) have no object')
    missing = [name for name in classes or () if not found[name]]
    if missing:
        raise LaunchError(
            f'--classes: no object is called {listed(missing)}; there are '
            f'{listed([f"{name} ({count})" for name, count in found.most_common()])}'
        )
    names = list(classes or [name for name in read.classes if found[name]])
    for things in read.objects.values():
        things[:] = [thing for thing in things if thing.name in names]
    left_out = {name: count for name, count in found.items() if name not in names}
    if left_out:
        count = sum(left_out.values())
        notes.append(f'{count} objects of other classes left out: {listed(list(left_out))}')
    unused = [name for name in read.classes if not found[name]]
    if unused and not classes:
        notes.append(f'{len(unused)} classes without an object left out: {listed(unused)}')
    return names


def _task(read: Annotations, notes: list[str]) -> str:
    """'masks' where every object has one, else 'boxes'."""
    masked = [bool(thing.mask) for things in read.objects.values() for thing in things]
    if any(masked) and not all(masked):
        notes.append(
            f'{sum(masked)} of {len(masked)} objects have a mask: training is on boxes alone'
        )
    return 'masks' if all(masked) else 'boxes'


def _coco(
    images: dict[str, Path],
    objects: dict[Path, list[Thing]],
    sizes: dict[Path, tuple[int, int]],
    names: list[str],
    masks: bool,
) -> dict:
    """One split as a COCO file; a category's id is its place among the names, from 1."""
    coco: dict[str, list[dict]] = dict(
        images=[],
        annotations=[],
        categories=[dict(id=i, name=name) for i, name in enumerate(names, 1)],
    )
    for name, file in images.items():
        number = len(coco['images']) + 1
        width, height = sizes[file]
        coco['images'].append(dict(id=number, file_name=name, width=width, height=height))
        for thing in objects[file]:
            item = dict(
                id=len(coco['annotations']) + 1,
                image_id=number,
                category_id=names.index(thing.name) + 1,
                bbox=thing.box,
                area=thing.box[2] * thing.box[3],
                iscrowd=thing.crowd,
            )
            if masks:
                item['segmentation'] = thing.mask
            coco['annotations'].append(item)
    return coco


def _colour(index: int, count: int) -> tuple[int, ...]:
    """One of so many colours that are far from each other: red, green, blue."""
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(index / max(1, count), 0.8, 0.9))


def _write_configs(
    folder: Path, project: Path, configs: Path, examples: Sequence[str], block: dict
) -> list[Path]:
    """Write shipped examples as the project's configs; their paths once the folder has its name.

    Raises:
        LaunchError: the block has no such variable.
    """
    names = [project.name, *(f'{project.name}_{example}' for example in examples[1:])]
    for name, example in zip(names, examples):
        text = (configs / 'examples' / f'your_dataset_{example}.py').read_text()
        text = text.replace("_base_ = '../", f"_base_ = '{configs}/")
        text = text.replace(f'your_dataset_{examples[0]}.py', f'{project.name}.py')
        text = text.replace(f'configs/examples/your_dataset_{example}.py', f'{project}/{name}.py')
        text = text.replace(f'configs/examples/{project.name}', f'{project}/{project.name}')
        if example == examples[0]:
            text = fill_block(text, block)
        (folder / f'{name}.py').write_text(text)
    return [project / f'{name}.py' for name in names]


def fill_block(text: str, values: dict) -> str:
    """The text of an example with other values of the variables in the block at its top.

    Raises:
        LaunchError: the block has no such variable.
    """
    found = BLOCK.search(text)
    assert found is not None
    block = found[2]
    for name, value in values.items():
        line = re.search(rf'(?m)^{re.escape(name)} = (.*?)(  #.*)?$', block)
        if not line:
            known = ', '.join(re.findall(r'(?m)^(\w+) = ', block))
            raise LaunchError(f'--set {name}: no such setting; there are {known}')
        if line[1].startswith('(') and isinstance(value, list):  # MMCV tells the two apart
            value = tuple(value)
        new = f'{name} = {value!r}{line[2] or ""}'
        block = block[: line.start()] + new + block[line.end() :]
    return text[: found.start(2)] + block + text[found.end(2) :]
