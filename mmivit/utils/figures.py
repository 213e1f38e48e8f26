"""Figures of matplotlib as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmivit.utils.files import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure as PNG, whole or not at all.

    Draw on ``matplotlib.figure.Figure`` itself: pyplot brings a backend and global state along.

    Args:
        figure: what to write.
        path: of the file.
        options: further arguments of ``Figure.savefig``.
    """
    with whole(path) as partial:
        figure.savefig(partial, format='png', **options)
