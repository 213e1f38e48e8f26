"""Images to predict on: found in files and folders, and read, whoever made them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import cv2
import mmcv
import numpy as np
from PIL import Image

from mmivit.datasets.vetting import MOST_PIXELS, check_image
from mmivit.utils.files import RefusedFile, check_regular
from mmivit.utils.text import printable

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm')


def find_images(inputs: Iterable[str | Path], out: Path) -> list[tuple[Path, Path]]:
    """The images of files and folders, each with its name relative to what was asked for.

    Args:
        inputs: files, and folders that are searched recursively.
        out: the folder to write, whose pictures and label maps are not taken for inputs.

    Raises:
        FileNotFoundError: an input does not exist, or a folder holds no image.
    """
    found = []
    outputs = [out.absolute() / name for name in ('pictures', 'labels')]
    for entry in map(Path, inputs):
        if entry.is_dir():
            left_out = [o for o in outputs if not entry.absolute().is_relative_to(o)]
            named = (p for p in entry.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES)
            images = sorted(
                path
                for path in named
                if not path.is_dir()
                and not any(path.absolute().is_relative_to(folder) for folder in left_out)
            )
            if not images:
                raise FileNotFoundError(
                    f'{entry} holds no image; looked for {", ".join(IMAGE_SUFFIXES)}'
                )
            found += [(path, path.relative_to(entry)) for path in images]
        elif entry.exists():
            found.append((entry, Path(entry.name)))
        else:
            raise FileNotFoundError(f'no file or folder {entry}, seen from {os.getcwd()}')
    return found


def read_image(path: Path) -> np.ndarray:
    """An image as BGR, (H, W, 3) uint8, turned as its EXIF orientation says.

    Pillow goes first: what is enormous or, if a PNG, damaged is not decoded.

    Raises:
        RefusedFile: it is no image, or too large to decode.
        OSError: there is no such file, or it may not be read.
    """
    check_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about sizes that are refused here
            check_image(path)
    except Image.DecompressionBombError as error:
        limit = f'more than {MOST_PIXELS // 10**6} megapixels'
        raise RefusedFile(f'{limit}; cut it into tiles') from error
    except PermissionError:
        raise
    except Exception as error:  # broken headers make Pillow's readers raise almost anything
        raise RefusedFile('not an image that can be read') from error
    try:
        image = mmcv.imread(str(path))
    except cv2.error as error:
        raise RefusedFile(f'not decoded ({printable(error)})') from error
    if image is None:
        raise RefusedFile('not an image that can be read')
    return image
