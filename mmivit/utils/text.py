"""Names and lines out of files, for errors, logs and reports."""

from __future__ import annotations

from collections.abc import Sequence

MAX_LISTED = 8  # names listed


def printable(text: object, most: int = 300) -> str:
    """One line of limited length: a name out of a file may hold anything, and terminals obey."""
    line = str(text)[:most]
    return line if line.isprintable() else ascii(line)


def listed(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are, for an error or a log."""
    more = len(names) - MAX_LISTED
    return ', '.join(map(printable, names[:MAX_LISTED])) + (f' and {more} more' if more > 0 else '')
