"""The built-in data set: drawn scenes with instance and semantic labels.

Five classes of rotated, textured, lit shapes on textured, lit backgrounds with clutter, overlapping
with correct visible masks. Colour hints at the class without deciding it: every class has a hue of
its own, scattered so widely that it overlaps its neighbours'. Every image depends on the seed and
its own number alone, so a data set is the same on any machine and grows without changing.
"""

from __future__ import annotations

import colorsys
import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle
from tqdm import tqdm

CLASSES = ('circle', 'square', 'triangle', 'star', 'cross')
PALETTE = ((220, 20, 60), (0, 140, 255), (60, 180, 75), (255, 190, 0), (145, 30, 180))
# Label map: 0 is unlabelled as in ADE20K (nothing here is), then background, then the shapes.
SEMANTIC_CLASSES = ('background', *CLASSES)
SPLITS = ('training', 'validation')
FOLDER_SPLITS = ('train', 'validation')  # as timm calls them

DRAWING = 1  # to be raised whenever the same spec would draw other pictures
OBJECTS = (2, 5)  # per image, inclusive
RADIUS = (0.13, 0.26)  # of the image's side
HUE_SCATTER = 22  # degrees, standard deviation; the classes' own hues are 72 degrees apart
MIN_VISIBLE = 0.4  # share of an object that must stay visible under those drawn later
SUPERSAMPLE = 4  # shapes are drawn this much larger, for smooth edges
JPEG_QUALITY = 95


@dataclass(frozen=True)
class ShapesSpec:
    """What makes a data set: equal specs give equal files.

    Args:
        train: number of training images.
        val: number of held-out images.
        size: side of the square images, pixels.
        seed: seed of everything drawn.
    """

    train: int = 1000
    val: int = 200
    size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (('train', 1), ('val', 1), ('size', 32), ('seed', 0)):
            if getattr(self, name) < least:
                raise ValueError(f'{name}={getattr(self, name)}: expected at least {least}')


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
        force: replace the folder, whatever it holds.
        classification: write the image folder.

    Returns:
        False if the folder holds this very data set already, and nothing was written.

    Raises:
        FileExistsError: the folder holds something else and ``force`` is off.
    """
    root = Path(root)
    wanted = dict(drawing=DRAWING, **asdict(spec))
    if classification:
        wanted['task'] = 'classification'
    if root.exists() and any(root.iterdir()) and not force:
        held = _read_spec(root)
        if held == wanted:
            return False
        raise FileExistsError(
            f'{root} exists and holds {held or "something else"}; asked for was {wanted}. '
            'Name another folder, or replace it with --force.'
        )
    partial = root.with_name(f'{root.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    splits, write = SPLITS, _write_split
    if classification:
        splits, write = FOLDER_SPLITS, _write_folder
    for index, (split, count) in enumerate(zip(splits, (spec.train, spec.val))):
        write(partial, split, count, spec, index)
    (partial / 'shapes.json').write_text(json.dumps(wanted))
    if root.exists():
        shutil.rmtree(root)
    partial.rename(root)
    return True


def draw_scene(
    rng: np.random.Generator, size: int, label: int | None = None
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """One image with its objects.

    Args:
        rng: source of everything random.
        size: side of the image, pixels.
        label: class of a single object; several of any class if not given.

    Returns:
        The image (size, size, 3) uint8 BGR; the class of each of n objects, indices into
        CLASSES; their visible masks (n, size, size) bool, disjoint.
    """
    image = _background(rng, size)
    labels: list[int] = []
    masks: list[np.ndarray] = []
    full_areas: list[int] = []
    single = label is not None
    wanted = 1 if single else int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))
    for _ in range(5 * wanted):
        if len(labels) == wanted:
            break
        label = label if single else int(rng.integers(len(CLASSES)))
        alpha = _shape_alpha(rng, CLASSES[label], size)
        mask = alpha > 0.5
        remaining = [(m & ~mask).sum() for m in masks]
        if any(left < MIN_VISIBLE * full for left, full in zip(remaining, full_areas)):
            continue  # it would hide an earlier object
        image = _paint(rng, image, alpha, label)
        masks = [m & ~mask for m in masks]
        labels.append(label)
        masks.append(mask)
        full_areas.append(mask.sum())
    return image.round().clip(0, 255).astype(np.uint8), labels, np.stack(masks)


def _read_spec(root: Path) -> dict | None:
    try:
        return json.loads((root / 'shapes.json').read_text())
    except (OSError, ValueError):
        return None


def _write_split(root: Path, split: str, count: int, spec: ShapesSpec, index: int) -> None:
    images, labels = root / 'images' / split, root / 'annotations' / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    coco = dict(
        info=dict(description='mmivit shapes', **asdict(spec)),
        images=[],
        annotations=[],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)],
    )
    for number in tqdm(range(count), desc=f'drawing {split}', mininterval=2):
        rng = np.random.default_rng((spec.seed, index, number))
        image, classes, masks = draw_scene(rng, spec.size)
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


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) float BGR: a lit colour with texture and clutter."""
    image = rng.uniform(60, 190, 3) + 12 * _noise(rng, size, cells=4, channels=3)
    image = image + 8 * _texture(rng, size)[..., None] * rng.uniform(0.3, 1, 3)
    for _ in range(rng.integers(2, 6)):  # strokes and curves that are no objects
        points = rng.uniform(0, size, (int(rng.integers(2, 5)), 1, 2)).astype(np.int32)
        colour = rng.uniform(30, 225, 3).tolist()
        cv2.polylines(image, [points], False, colour, 1, cv2.LINE_AA)
    return image * _light(rng, size)


def _paint(
    rng: np.random.Generator, image: np.ndarray, alpha: np.ndarray, label: int
) -> np.ndarray:
    """Lay an object in one of its class's colours over the image, textured and lit."""
    size = len(image)
    behind = image[alpha > 0.5].mean(0)
    colour = _class_colour(rng, label)
    while np.abs(colour - behind).max() < 60:  # an object nobody could see teaches nothing
        colour = _class_colour(rng, label)
    texture = rng.uniform(0, 8) * _texture(rng, size) + 5 * _noise(rng, size, cells=6)[..., 0]
    surface = (colour + texture[..., None]) * _light(rng, size)
    return image + alpha[..., None] * (surface - image)


def _class_colour(rng: np.random.Generator, label: int) -> np.ndarray:
    """(3,) BGR in [0, 255]: the class's hue with scatter, any saturation and brightness."""
    hue = (label * 360 / len(CLASSES) + HUE_SCATTER * rng.standard_normal()) % 360
    red_green_blue = colorsys.hsv_to_rgb(hue / 360, rng.uniform(0.4, 1), rng.uniform(0.3, 1))
    return 255 * np.array(red_green_blue[::-1])


def _noise(rng: np.random.Generator, size: int, cells: int, channels: int = 1) -> np.ndarray:
    """(size, size, channels) smooth noise of unit variance at its knots."""
    knots = rng.standard_normal((cells, cells, channels)).astype(np.float32)
    smooth = cv2.resize(knots, (size, size), interpolation=cv2.INTER_CUBIC)
    return smooth.reshape(size, size, channels).astype(np.float64)


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size) in about [-1, 1]: stripes, checks or grain."""
    y, x = np.mgrid[:size, :size]
    angle, period = rng.uniform(0, math.pi), rng.uniform(4, 16)
    u = 2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / period
    v = 2 * math.pi * (y * math.cos(angle) - x * math.sin(angle)) / period
    kind = rng.integers(3)
    if kind == 0:
        return np.sin(u)
    if kind == 1:
        return np.sin(u) * np.sin(v)
    return rng.standard_normal((size, size)).clip(-2, 2) / 2


def _light(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 1) factor: brightness falling off in a random direction."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.5)
    return (1 + strength * (x * math.cos(angle) + y * math.sin(angle)))[..., None]


def _shape_alpha(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """(size, size) coverage in [0, 1] of a shape at a random place, size and rotation."""
    radius = rng.uniform(*RADIUS) * size
    centre = rng.uniform(0.8 * radius, size - 0.8 * radius, 2)
    outline = centre + radius * _outline(name) @ _rotation(rng.uniform(0, 2 * math.pi))
    canvas = np.zeros((size * SUPERSAMPLE, size * SUPERSAMPLE), np.uint8)
    cv2.fillPoly(canvas, [np.round(outline * SUPERSAMPLE).astype(np.int32)], 255)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA) / 255.0


def _rotation(angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def _outline(name: str) -> np.ndarray:
    """(points, 2) polygon of a shape inside the unit circle."""
    if name == 'cross':
        arm = 0.36
        corner = np.array([[arm, arm], [arm, 1.0], [-arm, 1.0]])
        return np.concatenate([corner @ _rotation(-k * math.pi / 2) for k in range(4)])
    points = dict(circle=64, square=4, triangle=3, star=10)[name]
    angles = 2 * math.pi * np.arange(points) / points
    radii = np.where(np.arange(points) % 2, 0.45, 1.0) if name == 'star' else np.ones(points)
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
