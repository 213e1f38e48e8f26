"""Files that are written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
