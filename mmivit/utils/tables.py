"""Tables in Markdown, as reports and documents have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(
    header: Sequence[object], rows: Iterable[Sequence[object]], names: int = 1
) -> str:
    """A table, its first columns to the left and the others, which are numbers, to the right.

    Args:
        header: titles of the columns.
        rows: as many cells each.
        names: how many columns stand to the left.
    """
    rule = ['---'] * names + ['---:'] * (len(header) - names)
    lines = [f'| {" | ".join(map(str, cells))} |' for cells in (header, *rows)]
    return '\n'.join([lines[0], f'|{"|".join(rule)}|', *lines[1:]])
