"""Tree crowns for detection: the aerial photographs of ``deepforest``, boxes in Pascal VOC's XML.

How to get the package: :mod:`mmivit.datasets.photographs`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from mmivit.datasets.photographs import package_folder, read_image, write_image, write_photographs
from mmivit.utils.files import is_apple_double
from mmivit.utils.text import listed

TREE_CLASSES = ('tree',)  # deepforest's labels Tree, Alive and Dead are all crowns
SPLITS = ('training', 'validation')

CUTTING = 1  # to be raised whenever the same spec would write other files
# A tile keeps a box of which it shows this share. Tiles without overlap cut a box into four at
# most, one of which shows as much: no crown smaller than a tile is lost.
MIN_SHOWN = 0.25


@dataclass(frozen=True)
class TreesSpec:
    """What makes the tree-crown data set: equal specs give equal files.

    Args:
        size: side of the tiles, pixels; photographs no larger than that are left whole.
        overlap: least overlap of neighbouring tiles, pixels. Tiles are spread evenly from border
            to border, so they may overlap by more; a crown counts on every tile that shows it.
        held_out: names, without suffix, of the photographs whose tiles are for validation.
    """

    size: int = 400
    overlap: int = 0
    held_out: tuple[str, ...] = ('2019_YELL_2_541000_4977000_image_crop',)

    def __post_init__(self) -> None:
        if self.size < 32:
            raise ValueError(f'size={self.size}: expected at least 32')
        if not 0 <= self.overlap < self.size:
            raise ValueError(f'overlap={self.overlap}: expected 0 or more, below the size')


class Photograph(NamedTuple):
    """An annotated photograph: boxes (n, 4) are left, top, right, bottom edges in pixels."""

    path: Path
    width: int
    height: int
    boxes: np.ndarray


class Tile(NamedTuple):
    """A piece of a photograph: its place there, and the boxes it shows, clipped, in its own pixels.

    ``kept`` (n,) says which of the photograph's boxes ``boxes`` (n, 4) are; ``dropped`` is how many
    it shows too little of.
    """

    left: int
    top: int
    width: int
    height: int
    boxes: np.ndarray
    kept: np.ndarray
    dropped: int


def write_trees(source: str | Path, root: str | Path, spec: TreesSpec, force: bool = False) -> bool:
    """Cut the photographs of ``deepforest`` into tiles that stock ``CocoDataset`` reads.

        root/images/{training,validation}/PHOTOGRAPH_LEFT_TOP.png
        root/annotations/instances_{training,validation}.json    COCO, boxes without masks
        root/photographs.json                                    the spec, written last
        root/split.json                                          what is in which split

    All tiles of a photograph are of one split. Tiles without a tree stay.

    Args:
        source: folder where the wheel was unpacked.
        root: folder to write; complete or not there, whenever the process is stopped.
        spec: tiles and split.
        force: replace the data set of photographs that the folder holds.

    Returns:
        False if the folder holds this very data set already, and nothing was written.

    Raises:
        OSError: the package's files are not there, or ``root`` holds something else.
        ValueError: an annotation file is damaged, or the split leaves one side empty.
    """
    photographs = read_trees(source)
    names = [photograph.path.stem for photograph in photographs]
    unknown = sorted(set(spec.held_out) - set(names))
    if unknown:
        raise ValueError(f'no photograph {listed(unknown)}; there are {listed(names)}')
    if not set(spec.held_out) or not set(names) - set(spec.held_out):
        raise ValueError(f'both splits need a photograph; there are {listed(names)}')
    pieces = [
        (SPLITS[photo.path.stem in spec.held_out], photo, cut(photo, spec.size, spec.overlap))
        for photo in photographs
    ]
    table: list[dict[str, Any]] = [
        dict(
            split=split,
            photograph=photo.path.stem,
            crowns=len(photo.boxes),
            tiles=len(tiles),
            boxes=sum(len(tile.boxes) for tile in tiles),
            crowns_on_no_tile=len(photo.boxes) - len({i for tile in tiles for i in tile.kept}),
            cut_boxes_dropped=sum(tile.dropped for tile in tiles),
        )
        for split, photo, tiles in sorted(pieces, key=lambda piece: piece[0])
    ]
    wanted = dict(photographs='trees', cutting=CUTTING, **asdict(spec))

    def write(folder: Path) -> None:
        for split in SPLITS:
            _write_tiles(folder, split, [piece[1:] for piece in pieces if piece[0] == split])

    count = sum(row['tiles'] for row in table)
    return write_photographs(root, wanted, table, count, write, force)


def read_trees(source: str | Path) -> list[Photograph]:
    """The annotated photographs of an unpacked ``deepforest``, by name.

    Raises:
        OSError: there are none, or one lacks its picture.
        ValueError: an annotation file isn't Pascal VOC's, or of another picture.
    """
    folder = package_folder(source, 'deepforest/data', 'deepforest')
    files = sorted(path for path in folder.glob('*.xml') if not is_apple_double(path))
    if not files:
        raise FileNotFoundError(f'{folder} holds no annotation file *.xml')
    return [_read_voc(path) for path in files]


def cut(photo: Photograph, size: int, overlap: int) -> list[Tile]:
    """Tiles of at most ``size`` x ``size`` pixels that cover a photograph."""
    left, top, right, bottom = photo.boxes.T
    area = (right - left) * (bottom - top)
    width, height = min(size, photo.width), min(size, photo.height)
    tiles = []
    for y in _starts(photo.height, size, overlap):
        for x in _starts(photo.width, size, overlap):
            corner, far = (x, y, x, y), (x + width, y + height) * 2
            clipped = photo.boxes.clip(corner, far) - corner
            shown = (clipped[:, 2] - clipped[:, 0]) * (clipped[:, 3] - clipped[:, 1])
            enough = shown >= MIN_SHOWN * area
            dropped = int(((shown > 0) & ~enough).sum())
            kept = np.flatnonzero(enough)
            tiles.append(Tile(x, y, width, height, clipped[kept], kept, dropped))
    return tiles


def _starts(side: int, size: int, overlap: int) -> list[int]:
    count = max(1, math.ceil((side - overlap) / (size - overlap)))
    return np.linspace(0, max(0, side - size), count).round().astype(int).tolist()


def _read_voc(path: Path) -> Photograph:
    """One annotation file and the size of the picture beside it.

    The file is a stranger's: one that declares a document type, and so could define entities that
    grow or lead elsewhere, is refused before it is parsed.
    """
    try:
        # As text, so that no declared encoding hides the declaration from this look.
        text = path.read_text('utf-8')
        if '<!DOCTYPE' in text or '<!ENTITY' in text:
            raise ValueError('it declares a document type')
        root = ElementTree.fromstring(text)
        width, height = (int(root.findtext(f'size/{key}', '')) for key in ('width', 'height'))
        corners = [
            [float(box.findtext(key, '')) for key in ('xmin', 'ymin', 'xmax', 'ymax')]
            for box in root.iterfind('object/bndbox')
        ]
    except (ValueError, ElementTree.ParseError) as error:
        raise ValueError(f'{path} is not an annotation file of Pascal VOC: {error}') from None
    boxes = np.array(corners).reshape(-1, 4)
    # VOC's corners are pixels, counted from 1: the left edge of the first pixel is at 0.
    boxes[:, :2] -= 1
    sides = boxes[:, 2:] - boxes[:, :2]
    if not ((sides > 0).all() and (boxes >= 0).all() and (boxes <= [width, height] * 2).all()):
        raise ValueError(f'{path} has boxes outside its {width} x {height} pixels, or empty ones')
    return Photograph(path.with_suffix('.png'), width, height, boxes)


def _write_tiles(root: Path, split: str, pieces: list[tuple[Photograph, list[Tile]]]) -> None:
    folder = root / 'images' / split
    folder.mkdir(parents=True)
    coco: dict[str, Any] = dict(
        info=dict(description='tree crowns of deepforest, cut into tiles'),
        images=[],
        annotations=[],
        categories=[dict(id=1, name=TREE_CLASSES[0], supercategory='plant')],
    )
    for photo, tiles in pieces:
        picture = read_image(photo.path)
        if picture.shape[:2] != (photo.height, photo.width):
            found = f'{picture.shape[1]} x {picture.shape[0]}'
            raise ValueError(
                f'{photo.path} has {found} pixels, its annotation {photo.width} x {photo.height}'
            )
        for tile in tiles:
            left, top, width, height = tile[:4]
            name, image_id = f'{photo.path.stem}_{left}_{top}.png', len(coco['images'])
            write_image(folder / name, picture[top : top + height, left : left + width])
            coco['images'].append(dict(id=image_id, file_name=name, width=width, height=height))
            for x, y, right, bottom in tile.boxes.tolist():
                coco['annotations'].append(
                    dict(
                        id=len(coco['annotations']) + 1,  # pycocotools takes id 0 for no match
                        image_id=image_id,
                        category_id=1,
                        iscrowd=0,
                        bbox=[x, y, right - x, bottom - y],
                        area=(right - x) * (bottom - y),
                    )
                )
    file = root / 'annotations' / f'instances_{split}.json'
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(coco))
