"""Images to predict on: found in files and folders, and read, whoever made them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from mmivit.datasets.loaders import ImagePipeline, decodes_as_stock
from mmivit.datasets.vetting import (
    IMAGE_SUFFIXES,
    MOST_PIXELS,
    OTHER_SUFFIXES,
    check_image,
)
from mmivit.utils.files import RefusedFile, check_regular, is_apple_double
from mmivit.utils.text import printable


def find_images(
    inputs: Iterable[str | Path], out: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES
) -> list[tuple[Path, Path]]:
    """The images of files and folders, each with its name relative to what was asked for.

    Args:
        inputs: files, and folders that are searched recursively.
        out: the folder to write, whose pictures, videos and label maps are not taken for inputs.
        suffixes: ends of the names that are looked for in folders, in lower case.

    Raises:
        FileNotFoundError: an input does not exist, or a folder holds no image.
    """
    found = []
    suffixes = tuple(suffixes)
    outputs = [out.absolute() / name for name in ('pictures', 'labels', 'videos')]
    for entry in map(Path, inputs):
        if entry.is_dir():
            left_out = [o for o in outputs if not entry.absolute().is_relative_to(o)]
            named = (p for p in entry.rglob('*') if p.name.lower().endswith(suffixes))
            images = sorted(
                path
                for path in named
                if not path.is_dir()
                and not is_apple_double(path)
                and not any(path.absolute().is_relative_to(folder) for folder in left_out)
            )
            if not images:
                raise FileNotFoundError(
                    f'{entry} holds no image; looked for {", ".join(suffixes)}. Files of other '
                    "names can be given by name, or set the data set's img_suffix"
                )
            found += [(path, path.relative_to(entry)) for path in images]
        elif entry.exists():
            found.append((entry, Path(entry.name)))
        else:
            raise FileNotFoundError(f'no file or folder {entry}, seen from {os.getcwd()}')
    return found


def find_passed_over(inputs: Iterable[str | Path], suffixes: Iterable[str]) -> list[Path]:
    """The images and videos in folders that :func:`find_images` leaves, by their names' ends."""
    others = tuple(end for end in OTHER_SUFFIXES if end not in suffixes)
    return sorted(
        path
        for entry in inputs
        for path in Path(entry).rglob('*')  # of a file, nothing
        if path.name.lower().endswith(others) and not is_apple_double(path)
    )


def read_image(path: Path, pipeline: ImagePipeline) -> dict:
    """A sample of a config's pipeline, whose ``img`` is the image as its loader makes it.

    Pillow goes first, where the files are of its formats: what is enormous or, if a PNG, damaged is
    not decoded. Where the loader is none of mmcv's own, only files are let through to it.

    Raises:
        RefusedFile: it is no image, or too large to decode.
        OSError: there is no such file, or it may not be read.
    """
    check_regular(path)
    if decodes_as_stock(pipeline.loader):
        _check_decodable(path)
    try:
        sample = pipeline.load(path) or {}
    except OSError:
        raise
    except Exception as error:  # the config's loader, which may be anyone's
        raise RefusedFile(f'not loaded ({printable(error) or type(error).__name__})') from error
    image = sample.get('img')
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3) or not image.size:
        found = getattr(image, 'shape', None) or type(image).__name__
        raise RefusedFile(f'loaded as {found}, expected height x width, or with channels behind')
    return sample


def _check_decodable(path: Path) -> None:
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


def viewable(image: np.ndarray) -> np.ndarray:
    """An image as people see it, to be drawn on: BGR, (H, W, 3) uint8.

    Args:
        image: as a loader makes it, (H, W) or (H, W, C). Grey is repeated, of more channels the
            first three are taken; values that don't lie within [0, 255] as whole pixels' do are
            stretched to it, from the least to the greatest.
    """
    image = np.atleast_3d(image)
    image = image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, 2)
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    values = np.nan_to_num(image.astype(np.float64), posinf=0, neginf=0)
    low, high = values.min(), values.max()
    if low < 0 or not 1 < high <= 255:
        values = (values - low) * (255 / (high - low or 1))
    return values.astype(np.uint8)
