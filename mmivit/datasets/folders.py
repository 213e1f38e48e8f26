"""Folders that hold a data set of ours: written whole, and replaced only when told to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from mmivit.utils.files import is_apple_double


def write_folder(
    root: str | Path,
    marker: str,
    wanted: dict,
    pictures: tuple[str, int],
    write: Callable[[Path], None],
    force: bool = False,
    name: str = 'data set',
) -> bool:
    """Write a data set's folder; it is complete or not there, whenever the process is stopped.

    Args:
        root: the folder.
        marker: file in it that says what the data set is; a folder without one isn't touched.
        wanted: what the marker is to say, as JSON.
        pictures: pattern of the names and number of the pictures that a complete folder has.
        write: writes everything but the marker into the folder it is given, which isn't there yet.
        force: replace the data set that the folder holds.
        name: what errors call such a data set.

    Returns:
        False if the folder holds this very data set already, and nothing was written.

    Raises:
        FileExistsError: the folder holds another data set and ``force`` is off, or no data set.
    """
    root = Path(root)
    wanted = json.loads(json.dumps(wanted))  # tuples become lists, as in what is read back
    held = _read_marker(root, marker)
    occupied = root.exists() and (not root.is_dir() or any(root.iterdir()))
    if force and not held and occupied:
        raise FileExistsError(f'{root} holds no {name}; --force replaces nothing else')
    if occupied and not force:
        pattern, count = pictures
        there = sum(not is_apple_double(path) for path in root.rglob(pattern))
        if held == wanted and there == count:
            return False
        if held == wanted:
            raise FileExistsError(f'{root} lacks images of this data set; --force writes it anew')
        raise FileExistsError(
            f'{root} exists and holds {held or "something else"}; asked for was {wanted}. '
            'Name another folder, or replace it with --force.'
        )
    partial = root.with_name(f'{root.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    (partial / marker).write_text(json.dumps(wanted))
    if root.exists():
        shutil.rmtree(root)
    partial.rename(root)
    return True


def _read_marker(root: Path, marker: str) -> dict | None:
    """What a folder's data set is; None if it holds none."""
    try:
        return json.loads((root / marker).read_text())
    except (OSError, ValueError):
        return None
