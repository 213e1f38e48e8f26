"""Files that are written whole or not at all, and read only if they are files."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RefusedFile(Exception):
    """A file that is not handed on to its reader; the message says what it seems to be."""


def check_regular(path: str | Path) -> None:
    """Refuse what is no file to read from beginning to end: folders, pipes, devices.

    Raises:
        RefusedFile: it is one of these.
        OSError: there is no such file.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise RefusedFile('a folder, pipe or device, not a file')


def is_apple_double(path: str | Path) -> bool:
    """Is it what a Mac writes beside a file on a disk of others: ``._name.jpg``, no image?"""
    return Path(path).name.startswith('._')


def check_absent(path: str | Path, force: bool) -> None:
    """Raise FileExistsError if the file exists, unless ``force``."""
    if Path(path).exists() and not force:
        raise FileExistsError(f'{path} exists; name another file, or replace it with --force')


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A temporary name for a file, its own once it is written; nothing is left if that fails.

    The folders it needs are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.partial')
    partial.unlink(missing_ok=True)  # what lay there may have been a link
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, with the folders it needs, whole or not at all."""
    with whole(path) as partial, open(partial, 'xb') as file:
        file.write(content)
