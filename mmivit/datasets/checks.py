"""Reading a config's data sets before a run does: what is wrong, how often, and where.

Images and label maps go through the loaders of the config's own pipeline, so the report says what
training would get. Pillow goes first: its header check tells what must not be decoded at all, and
it notices a truncated file, which some versions of OpenCV fill up with grey.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.pool import ThreadPool

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, TRANSFORMS, Registry
from PIL import ExifTags, Image
from tqdm import tqdm

from mmivit.apis.launch import check_data, innermost_datasets, read_config
from mmivit.datasets.coco_file import (
    Finding,
    annotation_findings,
    category_findings,
    usable_entries,
)
from mmivit.datasets.vetting import IMAGE_FORMATS, check_image
from mmivit.errors import LaunchError
from mmivit.utils.text import printable

SPLITS = ('train', 'val', 'test')
EXAMPLES = 3  # kept of each kind; the rest is counted
THREADS = 4  # decoding runs in parallel; more threads would hold more images at once
LEAST_SIDE = 31  # pixels that the backbone needs
COLOURS = {'1': 'grey', 'L': 'grey', 'LA': 'grey', 'CMYK': 'CMYK', 'RGBA': 'RGBA'}  # Pillow's modes


@dataclass
class DataReport:
    """What was found in one data set: how many of each kind, and where the first few are."""

    name: str
    images: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    examples: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, findings: Iterable[Finding]) -> None:
        """Count findings and remember where the first few of each kind are."""
        for kind, where, problem in findings:
            (self.problems if problem else self.notes)[kind] += 1
            if len(self.examples[kind]) < EXAMPLES:
                self.examples[kind].append(printable(where))

    def __str__(self) -> str:
        lines = [f'{self.name}, {self.images} images: {sum(self.problems.values())} problems']
        for title, counts in (('problem', self.problems), ('note', self.notes)):
            for kind, count in counts.items():
                lines.append(f'  {title}: {count} {kind}')
                lines += [f'      {where}' for where in self.examples[kind]]
                if count > EXAMPLES:
                    lines.append('      ...')
        return '\n'.join(lines)


def check_datasets(
    config: str, splits: Sequence[str] | None = None, cfg_options: dict | None = None
) -> list[DataReport]:
    """Read every image and annotation of a config's data sets, through wrappers of any depth.

    Args:
        config: path of an mmdet or mmseg config.
        splits: which of 'train', 'val', 'test'; all that the config has if not given.
        cfg_options: what to override in the config, by dotted key.

    Returns:
        A report for each data set; one that several splits share is read once.

    Raises:
        LaunchError: the config, a split or a folder is missing, or a data set cannot be built.
    """
    cfg = read_config(config, cfg_options=cfg_options)
    present = [split for split in SPLITS if cfg.get(f'{split}_dataloader')]
    for split in splits or SPLITS[: not present]:
        if split not in present:
            raise LaunchError(
                f'{config} has no {split}_dataloader; it has those of: {", ".join(present) or "-"}'
            )
    check_data(cfg, tuple(splits or present))
    nodes: dict[str, tuple[dict, dict[str, None]]] = {}
    for split in splits or present:
        for node in innermost_datasets(cfg[f'{split}_dataloader']):
            key = repr({name: value for name, value in node.items() if name != 'pipeline'})
            nodes.setdefault(key, (node, {}))[1][split] = None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # what Pillow warns of is reported here, or harmless
        return [_check(node, list(of), cfg.get('default_scope')) for node, of in nodes.values()]


def _check(node: dict, splits: list[str], scope: str | None) -> DataReport:
    pipeline = node.get('pipeline') or []
    dataset = _build(DATASETS, dict(node, pipeline=[], lazy_init=True), scope)
    loader = _step(pipeline, 'LoadImage') or dict(type='LoadImageFromFile')
    load_image = _build(TRANSFORMS, loader, scope)
    labels = _step(pipeline, 'LoadAnnotations')
    kind = type(dataset)
    source = getattr(dataset, 'ann_file', '') or dataset.data_prefix.get('img_path') or ''
    report = DataReport(f'{", ".join(splits)}: {kind.__name__} {source}')
    classes = dataset.metainfo.get('classes') or ()
    # Subclasses of another format override one of these.
    readers = (kind.load_data_list.__qualname__, kind.parse_data_info.__qualname__)
    if isinstance(classes, str):
        report.add([Finding('classes that are one text', f"{classes}: write ('{classes}',)")])
    elif '://' in source:
        report.add([Finding('data sets elsewhere, which are not read here', source)])
    elif readers == ('CocoDataset.load_data_list', 'CocoDataset.parse_data_info'):
        masks = bool(labels.get('with_mask'))
        seen = _check_coco(report, dataset, classes, load_image, masks, splits == ['test'])
        report.add(_unseen(classes, seen, splits))
    elif any(base.__name__ == 'BaseSegDataset' for base in kind.__mro__):
        load_labels = _build(TRANSFORMS, labels, scope) if labels else None
        seen = _check_segmentation(report, dataset, len(classes), load_image, load_labels)
        if load_labels:
            report.add(_unseen(classes, {classes[label] for label in seen}, splits))
    else:
        what = 'data sets that are not read: neither like CocoDataset nor BaseSegDataset'
        report.add([Finding(what, kind.__name__)])
    return report


def _unseen(classes: Sequence[str], seen: set[str], splits: list[str]) -> Iterator[Finding]:
    """Classes without annotation; outside training they may be rare rather than forgotten."""
    for name in classes:
        if name not in seen:
            yield Finding('classes that are never annotated', name, 'train' in splits)


def _build(registry: Registry, node: dict, scope: str | None) -> BaseDataset | BaseTransform:
    try:
        return registry.build(dict(node, _scope_=scope))
    except Exception as error:  # whatever a constructor makes of the config's arguments
        raise LaunchError(f'{node.get("type")}: {_line(error)}') from error


def _step(pipeline: Iterable[dict], name: str) -> dict:
    """The first transform of a pipeline with this in its name; empty if there is none."""
    for step in pipeline:
        if name in getattr(step['type'], '__name__', str(step['type'])):
            return step
    return {}


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _FileFault(Exception):
    """A file that cannot be used; takes a Finding's kind and where."""


@dataclass
class _Picture:
    """What was found in an image and its label map."""

    size: tuple[int, int] | None = None  # height, width as loaded
    found: list[Finding] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)  # present


def _read(path: str, what: str) -> tuple[Image.Image, str]:
    """A file decoded to its end, and its layout of pixels, which Pillow's mode may simplify."""
    if not os.path.isfile(path):
        raise _FileFault(f'{what} missing', path)
    if not os.path.getsize(path):
        raise _FileFault(f'{what} empty (0 bytes)', path)
    try:
        width, height = check_image(path)
        if not width * height:
            raise _FileFault(f'{what} of zero size', f'{path}: {width} x {height}')
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            layout = str(image.tile)
            image.load()
    except _FileFault:
        raise
    except Image.DecompressionBombError as error:
        raise _FileFault(f'{what} enormous, not decoded', f'{path}: {_line(error)}') from error
    except Image.UnidentifiedImageError as error:
        raise _FileFault(f'{what} that are no image, or corrupt in the header', path) from error
    except Exception as error:  # broken files make Pillow's readers raise almost anything
        raise _FileFault(f'{what} truncated or corrupt', f'{path}: {_line(error)}') from error
    return image, layout


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # see _read; broken EXIF turns nothing
        return 1


def _load(loader: BaseTransform, sample: dict, key: str, path: str, what: str) -> np.ndarray:
    try:
        return loader(sample)[key]
    except Exception as error:  # the config's loader, which may be anyone's
        kind = f'{what} that the pipeline fails to load'
        raise _FileFault(kind, f'{path}: {_line(error)}') from error


def _check_image(path: str, load_image: BaseTransform) -> _Picture:
    picture = _Picture()
    try:
        image, layout = _read(path, 'images')
        loaded = _load(load_image, dict(img_path=path), 'img', path, 'images')
    except _FileFault as fault:
        picture.found.append(Finding(*fault.args))
        return picture
    picture.size = loaded.shape[:2]
    if min(picture.size) < LEAST_SIDE:
        kind = f'images under {LEAST_SIDE} px on a side, the least the backbone takes'
        picture.found.append(Finding(kind, f'{path}: {_size(picture.size)}'))
    colour = '16-bit' if ';16' in layout else COLOURS.get(image.mode)
    if colour:
        channels = loaded.shape[2] if loaded.ndim == 3 else 1
        kind = f'{colour} images, loaded as {channels} channels of {loaded.dtype}'
        picture.found.append(Finding(kind, path, problem=False))
    orientation = _orientation(image)
    if orientation not in (0, 1):
        kind = 'images with an EXIF orientation; boxes and label maps must fit them as loaded'
        where = f'{path}: orientation {orientation}, loaded as {_size(picture.size)}'
        picture.found.append(Finding(kind, where, problem=False))
    return picture


def _check_pair(
    entry: dict,
    load_image: BaseTransform,
    load_labels: BaseTransform | None,
    classes: int,
    ignored: int,
) -> _Picture:
    """An image and its label map, as one entry of a segmentation data set names them."""
    picture = _check_image(entry['img_path'], load_image)
    path = entry.get('seg_map_path')
    if load_labels is None or path is None:
        return picture
    try:
        image, _ = _read(path, 'label maps')
        kind = 'label maps that are not 8-bit with a single channel'
        if image.mode not in ('1', 'L', 'P'):  # a palette's indices are the labels
            raise _FileFault(kind, f'{path}: mode {image.mode}')
        labels = _load(load_labels, dict(entry, seg_fields=[]), 'gt_seg_map', path, 'label maps')
        stored = np.asarray(image)
        if labels.shape != stored.shape:
            raise _FileFault(kind, f'{path}: loaded as {labels.shape}')
    except _FileFault as fault:
        picture.found.append(Finding(*fault.args))
        return picture
    if picture.size not in (None, labels.shape):
        where = f'{path}: {_size(labels.shape)}, image {_size(picture.size)}'
        picture.found.append(Finding('label maps of another size than the image', where))
    unknown = (labels >= classes) & (labels != ignored)
    if unknown.any():
        values = ', '.join(str(int(value)) for value in np.unique(stored[unknown])[:8])
        kind = f'label maps with values that are none of the {classes} classes'
        picture.found.append(Finding(kind, f'{path}: {values}'))
    picture.labels = [label for label in np.unique(labels).tolist() if label < classes]
    return picture


def _size(shape: tuple[int, int]) -> str:
    return f'{shape[1]} x {shape[0]}'


def _pictures(check: Callable, items: list, report: DataReport) -> Iterator[_Picture]:
    """Check images in threads and report; what each of them holds, in order."""
    with ThreadPool(THREADS) as pool:
        for picture in tqdm(pool.imap(check, items), total=len(items), unit='image'):
            report.images += 1
            report.add(picture.found)
            yield picture


def _check_segmentation(
    report: DataReport,
    dataset: BaseDataset,
    classes: int,
    load_image: BaseTransform,
    load_labels: BaseTransform | None,
) -> set[int]:
    """Report on images and label maps; the labels seen."""
    try:
        entries = dataset.load_data_list()
    except (OSError, ValueError, TypeError) as error:
        report.add([Finding('lists of images that cannot be read', _line(error))])
        return set(range(classes))
    if not entries:
        folder = dataset.data_prefix.get('img_path') or ''
        there = Counter(os.path.splitext(n)[1] for _, _, names in os.walk(folder) for n in names)
        where = f'{folder} holds {dict(there.most_common(3)) or "no file"}'
        report.add([Finding(f'folders without an image named *{dataset.img_suffix}', where)])
        return set(range(classes))
    if not dataset.ann_file:  # the folder of images is the list, so a missing one goes unnoticed
        named = {entry.get('seg_map_path') for entry in entries}
        for root, _, names in os.walk(dataset.data_prefix.get('seg_map_path') or ''):
            for path in sorted(os.path.join(root, name) for name in names):
                if path.endswith(dataset.seg_map_suffix) and path not in named:
                    report.add([Finding('label maps without an image', path, problem=False)])
    check = partial(
        _check_pair,
        load_image=load_image,
        load_labels=load_labels,
        classes=classes,
        ignored=dataset.ignore_index,
    )
    return {label for picture in _pictures(check, entries, report) for label in picture.labels}


def _check_coco(
    report: DataReport,
    dataset: BaseDataset,
    classes: Sequence[str],
    load_image: BaseTransform,
    with_mask: bool,
    may_be_unlabelled: bool,
) -> set[str]:
    """Report on a COCO file and its images; the classes seen."""
    try:
        with open(dataset.ann_file, encoding='utf-8') as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        where = f'{dataset.ann_file}: {_line(error)}'
        report.add([Finding('annotation files that are not JSON', where)])
        return set(classes)
    unlabelled = may_be_unlabelled and isinstance(content, dict) and 'annotations' not in content
    parts = dict(annotations=[])
    for part in ('images', 'categories', 'annotations')[: 2 if unlabelled else 3]:
        parts[part], found = usable_entries(content, part)
        report.add(found)
    names = {category['id']: category['name'] for category in parts['categories']}
    sizes = {image['id']: (image['height'], image['width']) for image in parts['images']}
    report.add(category_findings([entry['name'] for entry in parts['categories']], classes))
    report.add(annotation_findings(parts['annotations'], sizes, set(names), with_mask))
    prefix = dataset.data_prefix.get('img', '')
    paths = [os.path.join(prefix, image['file_name']) for image in parts['images']]
    annotated = {annotation['image_id'] for annotation in parts['annotations']}
    pictures = _pictures(partial(_check_image, load_image=load_image), paths, report)
    for picture, image, path in zip(pictures, parts['images'], paths):
        stated = (image['height'], image['width'])
        if picture.size not in (None, stated):
            where = f'{path}: {_size(stated)} stated, {_size(picture.size)} loaded'
            kind = 'images of another size than the annotation file states'
            report.add([Finding(kind, where)])
        if image['id'] not in annotated:
            report.add([Finding('images without an annotation', path, problem=False)])
    return {names.get(annotation['category_id']) for annotation in parts['annotations']}
