"""Tables in Markdown, as reports and documents have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_row(cells: Iterable[object]) -> str:
    """A line of a table."""
    return f'| {" | ".join(map(str, cells))} |'


def markdown_table(
    header: Sequence[object], rows: Iterable[Sequence[object]] = (), names: int = 1
) -> str:
    """A table, its first columns to the left and the others, which are numbers, to the right.

    Args:
        header: titles of the columns.
        rows: as many cells each; without any, the head of a table whose rows come one by one, by
            :func:`markdown_row`.
        names: how many columns stand to the left.
    """
    rule = ['---'] * names + ['---:'] * (len(header) - names)
    return '\n'.join([markdown_row(header), f'|{"|".join(rule)}|', *map(markdown_row, rows)])
