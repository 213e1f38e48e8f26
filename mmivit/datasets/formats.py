"""Annotations as labelling tools write them, read into one form: objects by image.

Pascal VOC, YOLO and labelme are read by ``supervision``, which comes with ``mmivit[project]``; COCO
is mmdet's own format and is taken over as it is; CVAT's own XML, which neither reads, is read here.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from mmivit.datasets.coco_file import read_json
from mmivit.datasets.report import first_line
from mmivit.errors import LaunchError
from mmivit.utils.files import is_apple_double
from mmivit.utils.text import listed, printable

KNOWN = 'COCO, Pascal VOC, YOLO, labelme, CVAT (for images) and label maps'
LABEL_MAPS = 'label maps'
INSTALL = "install what reads it: pip install 'mmivit[project]', or supervision"


class Thing(NamedTuple):
    """An annotated object.

    Args:
        name: of its class.
        box: left, top, width, height in pixels.
        mask: polygons or run lengths as COCO has them; None where there is only a box.
        crowd: a group of objects, which is neither learnt nor counted as missed.
    """

    name: str
    box: list[float]
    mask: list | dict | None = None
    crowd: int = 0


@dataclass
class Annotations:
    """What was read.

    Args:
        form: the format.
        objects: by image; an image that was looked at and shows nothing has none.
        classes: names, in the order in which the files number them, or else of the alphabet.
        maps: of label maps, the file of each image.
        notes: how many of what was left out.
    """

    form: str
    objects: dict[Path, list[Thing]] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    maps: dict[Path, Path] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)

    def note(self, what: str, names: Sequence[str]) -> None:
        """Count files by what is to be said of them, and name the first."""
        if names:
            self.notes[f'{what}: {listed(names)}'] += len(names)


def read_annotations(source: Path, root: Path, images: Sequence[Path]) -> Annotations:
    """Read annotations of whatever known format.

    Args:
        source: a file, or a folder that is searched for them with its subfolders.
        root: folder of the images.
        images: their files, below it.

    Raises:
        LaunchError: the format is unknown or one of several, a file is damaged, or no annotation
            is of any image.
    """
    files = [source] if source.is_file() else sorted(source.rglob('*'))
    known = set(images)
    files = [f for f in files if f.is_file() and not is_apple_double(f) and f not in known]
    forms: dict[str, list[Path]] = {}
    for file in files:
        form = _form(file)
        if form:
            forms.setdefault(form, []).append(file)
    if len(forms) > 1 and LABEL_MAPS in forms:  # pictures beside other annotations
        del forms[LABEL_MAPS]
    if len(forms) != 1:
        found = f'annotations of {len(forms)} formats ({listed(sorted(forms))})'
        raise LaunchError(
            f'{source} holds {found if forms else "no annotations"}; expected those of one of '
            f'{KNOWN}: name their file or folder with --annotations'
        )
    [(form, of_form)] = forms.items()
    read: dict[str, Callable] = dict(COCO=_read_coco, CVAT=_read_cvat)
    if form == LABEL_MAPS:
        result = Annotations(form, maps=dict(_pairs(root, images, source, of_form)))
    elif form in read:
        result = read[form](of_form, root, images)
    else:
        result = _read_one_by_one(form, of_form, source, root, images)
    if not result.objects and not result.maps:
        raise LaunchError(
            f'none of the {len(of_form)} annotation files ({form}) is of any of the {len(images)} '
            f'images: images are named {listed([i.name for i in images[:3]])}, annotations '
            f'{listed([f.name for f in of_form[:3]])}'
        )
    unread = [image.name for image in images if image not in (result.objects or result.maps)]
    result.note('images without annotations, left out', unread)
    return result


def _form(file: Path) -> str | None:
    """The format of a file, by its first look."""
    suffix = file.suffix.lower()
    try:
        if suffix == '.json':
            content = read_json(str(file))
            keys = set(content) if isinstance(content, dict) else set()
            return 'labelme' if 'shapes' in keys else 'COCO' if 'images' in keys else None
        if suffix == '.xml':
            tag = _parse_xml(file).tag
            return {'annotation': 'Pascal VOC', 'annotations': 'CVAT'}.get(tag)
        if suffix == '.txt':
            first = file.read_text('utf-8').split('\n', 1)[0].split()
            numbers = [float(word) for word in first]
            return 'YOLO' if not first or len(numbers) > 1 else None  # faults are told later
    except (OSError, ValueError):
        return None
    return LABEL_MAPS if suffix == '.png' else None


def _parse_xml(file: Path) -> Any:
    """The root of an XML file, in which no entity is followed.

    Raises:
        ValueError: it is damaged or declares entities.
    """
    parser = _package('defusedxml.ElementTree')
    try:
        return parser.parse(file).getroot()
    except (parser.ParseError, ValueError) as error:
        raise ValueError(f'{file}: {first_line(error)}') from error


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise LaunchError(f'{first_line(error)}: {INSTALL}') from error


def _pairs(
    root: Path, images: Sequence[Path], source: Path, files: Iterable[Path]
) -> Iterator[tuple[Path, Path]]:
    """Images and the files named like them: in the same place, or anywhere if the name is unique.

    ``a.png`` or ``a.jpg.png`` is of ``a.jpg``.
    """
    base = source if source.is_dir() else source.parent
    places = {file.relative_to(base).with_suffix(''): file for file in files}
    names = Counter(place.name for place in places)
    unique = {place.name: file for place, file in places.items() if names[place.name] == 1}
    for image in images:
        place = image.relative_to(root)
        own = (place.with_suffix(''), place)
        found = [places[p] for p in own if p in places] or [
            unique[p.name] for p in own if p.name in unique
        ]
        if found:
            yield image, found[0]


def _read_one_by_one(
    form: str, files: list[Path], source: Path, root: Path, images: Sequence[Path]
) -> Annotations:
    """Formats of a file for each image.

    ``supervision`` keeps a whole mask of every object, so that it is given one image at a time.
    """
    dataset = _package('supervision').DetectionDataset
    result = Annotations(form)
    load = {'Pascal VOC': dataset.from_pascal_voc, 'labelme': dataset.from_labelme}.get(form)
    names: list[str] = []
    if form == 'YOLO':
        names = _yolo_names(source, root)
    pairs = dict(_pairs(root, images, source, files))
    paired = set(pairs.values())
    alone = [file.name for file in files if file not in paired]
    result.note('annotation files of no image, left out', alone)
    for image, file in tqdm(pairs.items(), unit='image'):
        if form == 'YOLO':
            _check_yolo(file)
        with TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as doubts:
            stem = Path(folder) / 'image'
            stem.with_suffix(image.suffix.lower()).symlink_to(image.resolve())
            stem.with_suffix(file.suffix.lower()).symlink_to(file.resolve())
            try:
                if load:
                    read = load(folder, folder)
                else:
                    yaml = Path(folder) / 'data.yaml'
                    yaml.write_text(json.dumps(dict(names=names)))  # JSON is YAML
                    read = dataset.from_yolo(folder, folder, str(yaml))
            except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
                reason = first_line(error).replace(f'{folder}/', '')
                raise LaunchError(f'{file} ({form}): {printable(reason)}') from error
        result.notes.update(
            printable(doubt.message) for doubt in doubts if doubt.category is UserWarning
        )
        (found,) = read.annotations.values()
        result.objects[image] = list(_things(found, read.classes, file))
    found_names = {thing.name for things in result.objects.values() for thing in things}
    result.classes = names or sorted(found_names)
    return result


def _things(found: Any, classes: Sequence[str], file: Path) -> Iterator[Thing]:
    """What ``supervision`` has read of one image."""
    masks = found.mask if found.mask is not None else [None] * len(found)
    for (left, top, right, bottom), number, mask in zip(found.xyxy.tolist(), found.class_id, masks):
        if number >= len(classes):
            raise LaunchError(f'{file}: class {number}, but there are only {len(classes)} names')
        runs = None if mask is None or not mask.any() else _run_lengths(np.asarray(mask))
        yield Thing(str(classes[number]), [left, top, right - left, bottom - top], runs)


def _run_lengths(mask: np.ndarray) -> dict:
    """A mask (height, width) as COCO's packed run lengths."""
    packed = import_module('pycocotools.mask').encode(np.asfortranarray(mask, np.uint8))
    return dict(size=[int(side) for side in packed['size']], counts=packed['counts'].decode())


def _check_yolo(file: Path) -> None:
    """Refuse lines of another length than YOLO's, which ``supervision`` reads as it can.

    Raises:
        LaunchError: there is one.
    """
    for number, line in enumerate(file.read_text('utf-8').splitlines(), 1):
        count = len(line.split())
        if count and count != 5 and (count < 7 or count % 2 == 0):
            raise LaunchError(
                f'{file}, line {number}, has {count} numbers; expected class, x, y, width, height '
                'or class and the x, y of three corners or more'
            )


def _yolo_names(source: Path, root: Path) -> list[str]:
    """The names of YOLO's classes: of a data.yaml or a classes.txt near the labels or images."""
    yaml = import_module('yaml')
    folder = source if source.is_dir() else source.parent
    for place in (folder, folder.parent, root, root.parent):
        for file in sorted(place.glob('*.y*ml')):
            try:
                names = yaml.safe_load(file.read_text('utf-8'))['names']
            except (yaml.YAMLError, OSError, KeyError, TypeError, ValueError):
                continue
            return [str(names[key]) for key in sorted(names)] if isinstance(names, dict) else names
        for file in (place / 'classes.txt', place / 'obj.names'):
            if file.is_file():
                return [
                    name.strip() for name in file.read_text('utf-8').splitlines() if name.strip()
                ]
    raise LaunchError(
        f'{source} (YOLO): its classes are numbers, and no data.yaml with names, classes.txt or '
        'obj.names lies beside the labels or the images to name them: write classes.txt, a line '
        'for each number from 0; --classes chooses among the names'
    )


def _image_by_name(root: Path, images: Sequence[Path]) -> Callable[[str], Path | None]:
    """Find the image that an annotation file names, by its path or, where unique, its name."""
    places = {image.relative_to(root).as_posix(): image for image in images}
    names = Counter(image.name for image in images)
    unique = {image.name: image for image in images if names[image.name] == 1}

    def find(name: str) -> Path | None:
        parts = [part for part in name.replace('\\', '/').split('/') if part not in ('', '.')]
        tails = ('/'.join(parts[start:]) for start in range(len(parts)))
        found = next((places[tail] for tail in tails if tail in places), None)
        return found or (unique.get(parts[-1]) if parts else None)

    return find


def _read_coco(files: list[Path], root: Path, images: Sequence[Path]) -> Annotations:
    """COCO files, several for splits; what is wrong in them the data checks will say."""
    result, find = Annotations('COCO'), _image_by_name(root, images)
    for file in files:
        content: Any = read_json(str(file))
        try:
            names = {entry['id']: str(entry['name']) for entry in content['categories']}
            paths = {entry['id']: find(entry['file_name']) for entry in content['images']}
            for number in sorted(names, key=lambda number: (isinstance(number, str), number)):
                if names[number] not in result.classes:
                    result.classes.append(names[number])
            absent = [str(e['file_name']) for e in content['images'] if paths[e['id']] is None]
            result.note('images that an annotation file names and that are not there', absent)
            result.objects.update((path, []) for path in paths.values() if path is not None)
            for entry in content['annotations']:
                for key, known in (('image_id', paths), ('category_id', names)):
                    if entry[key] not in known:
                        raise ValueError(
                            f'annotation {entry.get("id")} has {key} {entry[key]}, and there is '
                            'none of that id'
                        )
                path = paths[entry['image_id']]
                if path is not None:
                    thing = Thing(
                        names[entry['category_id']],
                        [float(side) for side in entry['bbox']],
                        entry.get('segmentation') or None,
                        int(bool(entry.get('iscrowd'))),
                    )
                    result.objects[path].append(thing)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
            reason = kind + printable(first_line(error))
            raise LaunchError(f'{file} is not a whole COCO file: {reason}') from error
    return result


def _read_cvat(files: list[Path], root: Path, images: Sequence[Path]) -> Annotations:
    """CVAT's own XML, 'CVAT for images 1.1'."""
    result, find = Annotations('CVAT'), _image_by_name(root, images)
    for file in files:
        tree = _parse_xml(file)
        if tree.find('track') is not None:
            raise LaunchError(
                f"{file} is of 'CVAT for video'; export 'CVAT for images' or 'COCO' instead"
            )
        for name in (label.findtext('name') for label in tree.iter('label')):
            if name and name not in result.classes:
                result.classes.append(name)
        for entry in tree.iterfind('image'):
            path = find(entry.get('name', ''))
            if path is None:
                result.notes['images that an annotation file names and that are not there'] += 1
                continue
            size = int(entry.get('height', 0)), int(entry.get('width', 0))
            things = result.objects.setdefault(path, [])
            for shape in entry:
                if 'label' not in shape.attrib:  # of the image, not of an object
                    continue
                try:
                    thing = _cvat_thing(shape, size)
                except (KeyError, ValueError, IndexError) as error:
                    where = f'{file}, {printable(entry.get("name"))}, {shape.tag}'
                    raise LaunchError(f'{where}: {printable(first_line(error))}') from error
                if thing is None:
                    result.notes[f'CVAT shapes that are no box or mask, left out: {shape.tag}'] += 1
                else:
                    things.append(thing)
    found = {thing.name for things in result.objects.values() for thing in things}
    result.classes += sorted(found - set(result.classes))
    return result


def _cvat_thing(shape: Any, size: tuple[int, int]) -> Thing | None:
    """A box, polygon or mask of an image (height, width); None of another shape."""
    value = shape.attrib
    if shape.tag == 'box' and not float(value.get('rotation', 0)):
        left, top, right, bottom = (float(value[key]) for key in ('xtl', 'ytl', 'xbr', 'ybr'))
        return Thing(value['label'], [left, top, right - left, bottom - top])
    if shape.tag == 'polygon':
        points = np.array(
            [[float(number) for number in pair.split(',')] for pair in value['points'].split(';')]
        )
        corner = points.min(0)
        box = [*corner.tolist(), *(points.max(0) - corner).tolist()]
        return Thing(value['label'], box, [points.ravel().tolist()])
    if shape.tag == 'mask':
        left, top, width, height = (int(value[key]) for key in ('left', 'top', 'width', 'height'))
        runs = [int(run) for run in value['rle'].split(',')]
        pixels = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
        mask = np.zeros(size, np.uint8)
        mask[top : top + height, left : left + width] = pixels
        return Thing(value['label'], [left, top, width, height], _run_lengths(mask))
    return None
