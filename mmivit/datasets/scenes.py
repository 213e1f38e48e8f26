"""Scenes of the drawn data set: an image, its objects and their visible masks.

Five classes of rotated, textured, lit shapes on textured, lit backgrounds with clutter, overlapping
with correct visible masks. Colour hints at the class without deciding it: every class has a hue of
its own, scattered so widely that it overlaps its neighbours'.

The hard mode asks for global attention. 8 to 20 small objects, a tenth to a fifth of the side
across, are circles, triangles and crosses. Somewhere among them lie three beacons: discs in the
hues of the three shapes, each with a white ring on it or a black bar. The class of an object is its
shape *and the mark of its shape's beacon*: the same circle is a 'ring circle' in one image and a
'bar circle' in another, while the crosses beside it may be either. Nothing else tells the two
apart: objects, colours, places and background are drawn alike under both. A network that sees only
a window around an object is left to guess one of two; one that looks the right beacon up across the
image is not. Ring and bar are classes of their own, so that seeing a beacon is taught directly and
looking it up is what is hard.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import cv2
import numpy as np

CLASSES = ('circle', 'square', 'triangle', 'star', 'cross')
HARD_SHAPES = ('circle', 'triangle', 'cross')
BEACONS = ('ring', 'bar')  # by their marks, white and black
MARK_GREYS = (235, 20)
# Objects first, the mark changing fastest, then the beacons themselves.
HARD_CLASSES = (*(f'{mark} {shape}' for shape in HARD_SHAPES for mark in BEACONS), *BEACONS)

OBJECTS = (2, 5)  # per image, inclusive
RADIUS = (0.13, 0.26)  # of the image's side
HARD_OBJECTS = (8, 20)
HARD_RADIUS = (0.06, 0.1)
BEACON_RADIUS = (0.09, 0.1)
HUE_SCATTER = 22  # degrees, standard deviation; the classes' own hues are 72 degrees apart
MIN_VISIBLE = 0.4  # share of an object that must stay visible under those drawn later
SUPERSAMPLE = 4  # shapes are drawn this much larger, for smooth edges


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
    scene = _Scene(_background(rng, size))
    wanted = int(rng.integers(OBJECTS[0], OBJECTS[1] + 1)) if label is None else 1
    for _ in range(5 * wanted):
        if len(scene.labels) == wanted:
            break
        drawn = int(rng.integers(len(CLASSES))) if label is None else label
        alpha = _shape_alpha(rng, CLASSES[drawn], size, RADIUS)
        if not scene.hides(alpha):
            scene.add(_paint(rng, scene.image, alpha, drawn), alpha, drawn)
    return scene.finish()


def draw_hard_scene(
    rng: np.random.Generator, size: int
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """One image of the hard mode; see :func:`draw_scene`. Labels are indices into HARD_CLASSES.

    The beacons are the last objects and keep clear of each other, so nothing hides them.
    """
    scene = _Scene(_background(rng, size))
    marks = rng.integers(len(BEACONS), size=len(HARD_SHAPES)).tolist()  # of each shape's beacon
    wanted = int(rng.integers(HARD_OBJECTS[0], HARD_OBJECTS[1] + 1))
    for _ in range(5 * wanted):
        if len(scene.labels) == wanted:
            break
        index = int(rng.integers(len(HARD_SHAPES)))
        shape = HARD_SHAPES[index]
        alpha = _shape_alpha(rng, shape, size, HARD_RADIUS)
        if not scene.hides(alpha):
            image = _paint(rng, scene.image, alpha, CLASSES.index(shape))
            scene.add(image, alpha, index * len(BEACONS) + marks[index])
    taken = np.zeros((size, size), bool)
    for shape, mark in zip(HARD_SHAPES, marks):
        disc, drawn = _beacon_alphas(rng, BEACONS[mark], size)
        while scene.hides(disc) or (taken & (disc > 0)).any():
            disc, drawn = _beacon_alphas(rng, BEACONS[mark], size)
        taken |= disc > 0
        hue = colorsys.hsv_to_rgb(CLASSES.index(shape) / len(CLASSES), 1, 0.9)
        light, drawn = _light(rng, size), drawn[..., None]
        surface = light * (255 * np.array(hue[::-1]) * (1 - drawn) + MARK_GREYS[mark] * drawn)
        image = scene.image + disc[..., None] * (surface - scene.image)
        scene.add(image, disc, len(HARD_SHAPES) * len(BEACONS) + mark)
    return scene.finish()


class _Scene:
    """An image while objects are laid on it, each over those before."""

    def __init__(self, background: np.ndarray) -> None:
        self.image = background  # (size, size, 3) float BGR
        self.labels: list[int] = []
        self.masks: list[np.ndarray] = []
        self.areas: list[int] = []  # before anything was laid over

    def hides(self, alpha: np.ndarray) -> bool:
        """Would an object of this coverage leave too little of an earlier one?"""
        remaining = [(mask & ~(alpha > 0.5)).sum() for mask in self.masks]
        return any(left < MIN_VISIBLE * full for left, full in zip(remaining, self.areas))

    def add(self, image: np.ndarray, alpha: np.ndarray, label: int) -> None:
        mask = alpha > 0.5
        self.image = image
        self.masks = [m & ~mask for m in self.masks]
        self.masks.append(mask)
        self.labels.append(label)
        self.areas.append(mask.sum())

    def finish(self) -> tuple[np.ndarray, list[int], np.ndarray]:
        image = self.image.round().clip(0, 255).astype(np.uint8)
        return image, self.labels, np.stack(self.masks)


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


def _shape_alpha(
    rng: np.random.Generator, name: str, size: int, radii: tuple[float, float]
) -> np.ndarray:
    """(size, size) coverage in [0, 1] of a shape at a random place, size and rotation."""
    return _coverage([_place(rng, size, radii)(_outline(name))], size)


def _beacon_alphas(rng: np.random.Generator, mark: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(size, size) coverage of a beacon at a random place, and of the mark on it."""
    place = _place(rng, size, BEACON_RADIUS)
    disc = _outline('circle')
    ring = [0.75 * disc, 0.4 * disc]
    bar = [np.array([[-0.8, -0.25], [0.8, -0.25], [0.8, 0.25], [-0.8, 0.25]])]
    outlines = dict(ring=ring, bar=bar)[mark]
    return _coverage([place(disc)], size), _coverage([place(part) for part in outlines], size)


def _place(
    rng: np.random.Generator, size: int, radii: tuple[float, float]
) -> Callable[[np.ndarray], np.ndarray]:
    """Takes outlines in the unit circle to one random place, size and rotation, in pixels."""
    radius = rng.uniform(*radii) * size
    centre = rng.uniform(0.8 * radius, size - 0.8 * radius, 2)
    rotation = _rotation(rng.uniform(0, 2 * math.pi))
    return lambda outline: centre + radius * outline @ rotation


def _coverage(outlines: list[np.ndarray], size: int) -> np.ndarray:
    """(size, size) coverage in [0, 1] of polygons in pixels; one inside another is a hole."""
    canvas = np.zeros((size * SUPERSAMPLE, size * SUPERSAMPLE), np.uint8)
    cv2.fillPoly(canvas, [np.round(o * SUPERSAMPLE).astype(np.int32) for o in outlines], 255)
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
