"""Images of a data set: read by Pillow, loaded as the pipeline does, and what is wrong with them.

Pillow goes first: its header check tells what must not be decoded at all, and it notices a
truncated file, which some versions of OpenCV fill up with grey.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from PIL import ExifTags, Image
from tqdm import tqdm

from mmivit.datasets.loaders import decodes_as_stock
from mmivit.datasets.report import DataReport, Finding, first_line
from mmivit.datasets.vetting import IMAGE_FORMATS, check_image
from mmivit.errors import LaunchError

NEARLY_BLACK = 15  # of 255: what the upper byte of 12 bits in 16 can hold
SCALE_BITS = "scale them to 16 bits, or load with color_type='unchanged'"
THREADS = 4  # decoding runs in parallel; more threads would hold more images at once
LEAST_SIDE = 31  # pixels that the backbone needs
COLOURS = {'1': 'grey', 'L': 'grey', 'LA': 'grey', 'CMYK': 'CMYK', 'RGBA': 'RGBA'}  # Pillow's modes


class FileFault(Exception):
    """A file that cannot be used; takes a Finding's kind and where."""


@dataclass
class Picture:
    """What was found in an image and its label map."""

    size: tuple[int, int] | None = None  # height, width as loaded
    found: list[Finding] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)  # present


def read_file(path: str, what: str) -> tuple[Image.Image, str]:
    """A file decoded to its end, and its layout of pixels, which Pillow's mode may simplify.

    Args:
        path: of the file.
        what: how findings name such files.

    Raises:
        FileFault: it is missing, empty, enormous, damaged or no image.
    """
    if not os.path.isfile(path):
        raise FileFault(f'{what} missing', path)
    if not os.path.getsize(path):
        raise FileFault(f'{what} empty (0 bytes)', path)
    try:
        width, height = check_image(path)
        if not width * height:
            raise FileFault(f'{what} of zero size', f'{path}: {width} x {height}')
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            layout = str(image.tile)
            image.load()
    except FileFault:
        raise
    except Image.DecompressionBombError as error:
        where = f'{path}: {first_line(error)}'
        raise FileFault(f'{what} enormous, not decoded', where) from error
    except Image.UnidentifiedImageError as error:
        raise FileFault(f'{what} that are no image, or corrupt in the header', path) from error
    except Exception as error:  # broken files make Pillow's readers raise almost anything
        where = f'{path}: {first_line(error)}'
        raise FileFault(f'{what} truncated or corrupt', where) from error
    return image, layout


def load(loader: BaseTransform, sample: dict, key: str, path: str, what: str) -> np.ndarray:
    """What the pipeline's loader makes of a file, (height, width, ...).

    Args:
        loader: reads ``sample`` and adds ``key``.
        path, what: as in :func:`read_file`.

    Raises:
        FileFault: it fails.
    """
    try:
        loaded = loader(sample)[key]
        if not isinstance(loaded, np.ndarray) or loaded.ndim < 2:
            raise TypeError(f'{key} is {type(loaded).__name__}, expected an array of an image')
    except Exception as error:  # the config's loader, which may be anyone's
        if not os.path.exists(path):
            raise FileFault(f'{what} missing', path) from error
        kind = f'{what} that the pipeline fails to load'
        raise FileFault(kind, f'{path}: {first_line(error)}') from error
    return loaded


def look_at_image(sample: dict, load_image: BaseTransform) -> Picture:
    """What an image is once loaded, and what is wrong with it.

    Args:
        sample: with ``img_path``, as the data set hands it to its pipeline.
        load_image: the pipeline's loader. Where it is none of mmcv's own, Pillow may not know the
            files and is not asked.
    """
    picture = Picture()
    path = sample['img_path']
    stock = decodes_as_stock(load_image)
    try:
        image, layout = read_file(path, 'images') if stock else (None, '')
        loaded = load(load_image, dict(sample), 'img', path, 'images')
    except FileFault as fault:
        picture.found.append(Finding(*fault.args))
        return picture
    if loaded.ndim <= 3:  # more are volumes, whose first axes are not height and width
        picture.size = loaded.shape[:2]
        if min(picture.size) < LEAST_SIDE:
            kind = f'images under {LEAST_SIDE} px on a side, the least the backbone takes'
            picture.found.append(Finding(kind, f'{path}: {size_text(picture.size)}'))
    if image is not None:
        picture.found += _notes(image, layout, loaded, path)
    return picture


def _notes(image: Image.Image, layout: str, loaded: np.ndarray, path: str) -> Iterator[Finding]:
    """What the loader made of the file's own form."""
    colour = '16-bit' if ';16' in layout else COLOURS.get(image.mode)
    if colour:
        channels = loaded.shape[2] if loaded.ndim == 3 else 1
        kind = f'{colour} images, loaded as {channels} channels of {loaded.dtype}'
        yield Finding(kind, path, problem=False)
    dark = darkness(path, loaded)
    if dark:
        yield dark
    orientation = _orientation(image)
    if orientation not in (0, 1):
        kind = 'images with an EXIF orientation; boxes and label maps must fit them as loaded'
        where = f'{path}: orientation {orientation}, loaded as {size_text(loaded.shape)}'
        yield Finding(kind, where, problem=False)


def darkness(path: str | Path, loaded: np.ndarray) -> Finding | None:
    """What is to be said of an image that loads nearly black.

    Cameras and scanners write 12 bits or fewer into 16-bit files, of which decoding to 8 bits
    keeps the upper byte: 15 of 255 at most.

    Args:
        path: of the file, of a format that OpenCV reads.
        loaded: the image as the model gets it, values in [0, 255].
    """
    if not loaded.size or loaded.max() > NEARLY_BLACK:
        return None
    kind, where = 'images that load nearly black', f'{path}: at most {loaded.max():g} of 255'
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if stored is not None and stored.dtype.kind == 'f':
        return None  # of a range of its own, which loading keeps
    if stored is None or stored.dtype != np.uint16 or stored.max() <= 255:
        return Finding(kind, where, problem=False)
    where += f', {stored.max()} of 65535 in the file'
    return Finding(f'{kind}, being 12 bits or fewer in 16-bit files: {SCALE_BITS}', where)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # see read_file; broken EXIF turns nothing
        return 1


def size_as_loaded(path: str | Path) -> tuple[int, int]:
    """Width and height of an image as loaders turn it by its EXIF orientation, by its header.

    Raises:
        LaunchError: it is damaged, enormous or no image.
    """
    try:
        size = check_image(path)
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            return size[::-1] if _orientation(image) >= 5 else size  # lies on its side
    except Exception as error:  # of nearly any kind: see check_image
        raise LaunchError(f'{path}: {first_line(error)}') from error


def size_text(shape: tuple[int, int]) -> str:
    """Width x height of (height, width)."""
    return f'{shape[1]} x {shape[0]}'


def look_at_all(look: Callable, items: list, report: DataReport) -> Iterator[Picture]:
    """Look at images in threads and report; what each of them holds, in order."""
    with ThreadPool(THREADS) as pool:
        for picture in tqdm(pool.imap(look, items), total=len(items), unit='image'):
            report.images += 1
            report.add(picture.found)
            yield picture
