"""The built-in data set: drawn scenes written as COCO and ADE20K have theirs, or as timm reads.

Every image depends on the seed and its own number alone, so a data set is the same on any machine
and grows without changing. What is drawn: :mod:`mmivit.datasets.scenes`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle
from tqdm import tqdm

from mmivit.datasets.folders import write_folder
from mmivit.datasets.scenes import (
    BEACONS,
    CLASSES,
    HARD_CLASSES,
    HARD_SHAPES,
    draw_hard_scene,
    draw_scene,
)

__all__ = [
    'BEACONS',
    'CLASSES',
    'HARD_CLASSES',
    'HARD_SHAPES',
    'PALETTE',
    'SEMANTIC_CLASSES',
    'ShapesSpec',
    'draw_hard_scene',
    'draw_scene',
    'write_dataset',
]

PALETTE = ((220, 20, 60), (0, 140, 255), (60, 180, 75), (255, 190, 0), (145, 30, 180))
# Label map: 0 is unlabelled as in ADE20K (nothing here is), then background, then the shapes.
SEMANTIC_CLASSES = ('background', *CLASSES)
SPLITS = ('training', 'validation')
FOLDER_SPLITS = ('train', 'validation')  # as timm calls them

DRAWING = 1  # to be raised whenever the same spec would draw other pictures
JPEG_QUALITY = 95


@dataclass(frozen=True)
class ShapesSpec:
    """What makes a data set: equal specs give equal files.

    Args:
        train: number of training images.
        val: number of held-out images.
        size: side of the square images, pixels.
        seed: seed of everything drawn.
        hard: the hard mode, with the classes HARD_CLASSES.
    """

    train: int = 1000
    val: int = 200
    size: int = 128
    seed: int = 0
    hard: bool = False

    def __post_init__(self) -> None:
        for name, least in (('train', 1), ('val', 1), ('size', 32), ('seed', 0)):
            if getattr(self, name) < least:
                raise ValueError(f'{name}={getattr(self, name)}: expected at least {least}')

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; the label map has 'background' before them."""
        return HARD_CLASSES if self.hard else CLASSES

    def describe(self) -> dict:
        """What the files say of it. ``hard`` only where it is on: data sets older than it hold."""
        return {key: value for key, value in asdict(self).items() if key != 'hard' or value}


def write_dataset(
    root: str | Path, spec: ShapesSpec, force: bool = False, classification: bool = False
) -> bool:
    """Draw a data set that stock ``CocoDataset`` and ``BaseSegDataset`` read, or timm.

        root/images/{training,validation}/000000.jpg
        root/annotations/instances_{training,validation}.json    COCO, run-length masks
        root/annotations/{training,validation}/000000.png        label maps as in ADE20K
        root/shapes.json                                         the spec, written last

    For classification, images of one object each, as timm's ``ImageFolder`` reads them:

        root/{train,validation}/{circle,square,...}/000000.jpg

    Args:
        root: folder to write; complete or not there, whenever the process is stopped.
        spec: what to draw.
        force: replace the data set that the folder holds.
        classification: write the image folder.

    Returns:
        False if the folder holds this very data set already, and nothing was written.

    Raises:
        FileExistsError: the folder holds another data set and ``force`` is off, or no data set.
        ValueError: the hard mode for classification, which it has not.
    """
    if spec.hard and classification:
        raise ValueError('the hard mode is for segmentation and detection, not classification')
    wanted = dict(drawing=DRAWING, **spec.describe())
    splits, write_split = SPLITS, _write_split
    if classification:
        wanted['task'] = 'classification'
        splits, write_split = FOLDER_SPLITS, _write_folder

    def write(folder: Path) -> None:
        for index, (split, count) in enumerate(zip(splits, (spec.train, spec.val))):
            write_split(folder, split, count, spec, index)

    pictures = ('*.jpg', spec.train + spec.val)
    return write_folder(root, 'shapes.json', wanted, pictures, write, force, 'drawn data set')


def _write_split(root: Path, split: str, count: int, spec: ShapesSpec, index: int) -> None:
    images, labels = root / 'images' / split, root / 'annotations' / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    coco: dict[str, Any] = dict(
        info=dict(description='mmivit shapes', **spec.describe()),
        images=[],
        annotations=[],
        categories=[
            dict(id=i + 1, name=name, supercategory='beacon' if name in BEACONS else 'shape')
            for i, name in enumerate(spec.classes)
        ],
    )
    for number in tqdm(range(count), desc=f'drawing {split}', mininterval=2):
        rng = np.random.default_rng((spec.seed, index, number))
        image, classes, masks = (draw_hard_scene if spec.hard else draw_scene)(rng, spec.size)
        name = f'{number:06d}'
        cv2.imwrite(str(images / f'{name}.jpg'), image, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
        semantic = np.ones((spec.size, spec.size), np.uint8)  # background
        for label, mask in zip(classes, masks):
            semantic[mask] = label + 2
        cv2.imwrite(str(labels / f'{name}.png'), semantic)
        coco['images'].append(
            dict(id=number, file_name=f'{name}.jpg', width=spec.size, height=spec.size)
        )
        for label, mask in zip(classes, masks):
            coco['annotations'].append(
                dict(
                    id=len(coco['annotations']) + 1,  # pycocotools takes id 0 for no match
                    image_id=number,
                    category_id=label + 1,
                    iscrowd=0,
                    **_coco_mask(mask),
                )
            )
    (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(coco))


def _write_folder(root: Path, split: str, count: int, spec: ShapesSpec, index: int) -> None:
    for name in CLASSES:
        (root / split / name).mkdir(parents=True)
    for number in tqdm(range(count), desc=f'drawing {split}', mininterval=2):
        rng = np.random.default_rng((spec.seed, index, number))
        label = number % len(CLASSES)
        image, _, _ = draw_scene(rng, spec.size, label)
        path = root / split / CLASSES[label] / f'{number:06d}.jpg'
        cv2.imwrite(str(path), image, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))


def _coco_mask(mask: np.ndarray) -> dict:
    encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(
        area=int(rle.area(encoded)),
        bbox=rle.toBbox(encoded).tolist(),  # x, y, width, height in pixels
        segmentation=dict(size=encoded['size'], counts=encoded['counts'].decode()),
    )
